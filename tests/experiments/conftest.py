"""Data for sweeps."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orthotune.data.decoded import DECODED
from training.tiny import write_digits


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Two tasks, to be read only: one with a validation split of its own, one without."""
    folder = tmp_path_factory.mktemp("tasks")
    write_digits(folder / "three", train=6, test=4, val=3)
    write_digits(folder / "four", train=6, test=4, classes=4)
    return {name: {"data": str(folder / name)} for name in ("three", "four")}


@pytest.fixture(scope="session")
def three(tasks: dict[str, dict[str, str]]) -> Path:
    """The folder of the first."""
    return Path(tasks["three"]["data"])


@pytest.fixture(scope="module", autouse=True)
def _no_images_kept_for_other_tests() -> Iterator[None]:
    yield
    DECODED.budget = 0
