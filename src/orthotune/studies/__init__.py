"""The papers' tables and ablations as ready sweeps: a YAML file each, run by ``orthotune sweep NAME``."""

from __future__ import annotations

from pathlib import Path

from orthotune.errors import InputError
from orthotune.methods import near

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the studies, such as ``rlrr-table6``."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def study(name: str) -> Path:
    """Return the sweep file of a study; InputError, with near names, for one that is not there."""
    if name not in names():
        raise InputError(f"study {name!r} is unknown; {near(name, names())} (a file's name ends in .yaml)")
    return _FOLDER / f"{name}.yaml"


def about(name: str) -> str:
    """Return what a study is, in a line or two: the comment that its file begins with."""
    lines = study(name).read_text().splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in head)
