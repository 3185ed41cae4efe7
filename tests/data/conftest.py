"""Shrunk synthetic copies of the benchmarks' layouts, made by the script that also makes whole ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orthotune.protocols import load_protocol

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "layouts"))

import layouts

#: Makes a copy of (protocol, task) below a root and returns (its name as data, its folder).
Copy = Callable[..., tuple[str, Path]]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Copies with few images a split."""

    def make(
        name: str, task: str, images: int = 30, form: str | None = None, root: Path = tmp_path
    ) -> tuple[str, Path]:
        protocol = load_protocol(name)
        folder = layouts.make(root, protocol, protocol.tasks[task], layouts.Shrink(images), form)
        return protocol.tasks[task].at(str(root)).data, folder

    return make
