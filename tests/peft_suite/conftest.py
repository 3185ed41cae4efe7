"""The tier is collected only when asked for, because it fetches PEFT's source distribution."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orthotune.errors import InputError

HERE = Path(__file__).parent


def _asked_for(config: pytest.Config) -> bool:
    marks = config.option.markexpr or ""
    if "peft_suite" in marks:
        return "peft_suite" in marks.replace("not peft_suite", "")
    return any("peft_suite" in str(argument) for argument in config.invocation_params.args)


def pytest_configure(config: pytest.Config) -> None:
    """Admit a mark that PEFT misspells."""
    config.addinivalue_line("markers", "skipf: skipif, as it is spelt once in PEFT's tests")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the tier's modules out of an ordinary run."""
    return True if collection_path.is_relative_to(HERE) and not _asked_for(config) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tier; PEFT's tests do not expect warnings to be errors."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.peft_suite)
            item.add_marker(pytest.mark.filterwarnings("default"))


# A test may ask a method for what it cannot give; for which adapters that is right, tests/tuners says.
DOES_NOT_APPLY = re.compile(r"cannot be merged into layer|none of the \d+ targeted layers|has no meaning here")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Skip the rest of a test that merges an adapter without a merged form, or whose model has nothing to adapt."""
    try:
        return (yield)
    except InputError as error:
        if pyfuncitem.path.is_relative_to(HERE) and DOES_NOT_APPLY.search(str(error)):
            pytest.skip(str(error))
        raise
