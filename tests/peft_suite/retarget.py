"""Put our cases in the place of those that PEFT's test functions are parametrised over."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest


def retarget(
    test_class: type,
    cases: Mapping[str, Sequence[Any]],
    models: Sequence[Any] = (),
    *,
    also: Collection[str] = (),
    leave_out: Mapping[str, str] | None = None,
) -> type:
    """Keep, of a class of PEFT's tests, those parametrised over PEFT methods, and give them ``cases``; return it.

    Args:
        test_class: the class.
        cases: argument names, as in ``"config_cls, config_kwargs"`` -> the values to run with.
        models: values for ``model_id``.
        also: tests to keep that are not parametrised over methods but concern all of them.
        leave_out: tests that do not apply -> the reason.

    Raises LookupError if ``also`` names a test that does not exist, so that a rename in PEFT does not go unseen.
    """
    tests = {name: test for name, test in vars(test_class).items() if name.startswith("test")}
    if unknown := set(also) - set(tests):
        raise LookupError(f"{test_class.__name__} has no {', '.join(sorted(unknown))}")
    for name, test in tests.items():
        marks = [_replaced(mark, cases) for mark in getattr(test, "pytestmark", [])]
        about_methods = any(new is not None for new in marks)
        if name in (leave_out or {}) or not (about_methods or name in also):
            delattr(test_class, name)
            continue
        olds = getattr(test, "pytestmark", [])
        by_model = [_replaced(old, {"model_id": models}) if models else None for old in olds]
        test.pytestmark = [new or model or old for new, model, old in zip(marks, by_model, olds, strict=True)]
    return test_class


def _replaced(mark: pytest.Mark, cases: Mapping[str, Sequence[Any]]) -> pytest.Mark | None:
    """Return the mark with our values, or None if it is not about any of ``cases``."""
    if mark.name != "parametrize":
        return None
    names = mark.args[0]
    key = ", ".join(part.strip() for part in names.split(",")) if isinstance(names, str) else ", ".join(names)
    return pytest.mark.parametrize(names, cases[key], ids=_ids(cases[key])).mark if key in cases else None


def _ids(values: Sequence[Any]) -> list[str]:
    return [_id(value).replace(" ", "-") for value in values]


def _id(value: Any) -> str:
    if isinstance(value, tuple) and isinstance(value[0], str):  # a case with a name
        return value[0]
    if isinstance(value, tuple):
        return "-".join(_id(part) for part in value if part != {})
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items() if key not in ("task_type", "target_modules"))
    if isinstance(value, str):
        return value.rpartition("/")[2]
    return value.__name__ if isinstance(value, type) else type(value).__name__
