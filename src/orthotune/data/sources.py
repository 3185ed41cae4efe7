"""Where images come from: ``FOLDER``, or ``SCHEME:WHERE``. A new source is a module with ``read`` and a line here."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from orthotune.data import folder
from orthotune.data.expected import known_task
from orthotune.data.pictures import ImageData, Report, Split, stop
from orthotune.data.quick import quick_check
from orthotune.errors import InputError
from orthotune.methods import near
from orthotune.tasks import task_of_data

#: Scheme to (module, what it reads). Each module has ``read(where, classes, report) -> ImageData``.
SOURCES = {
    "folder": ("folder", "FOLDER with train/ [val/] [test/], one sub-folder per class; the scheme may be left out"),
    "vtab": ("vtab", "FOLDER of a VTAB-1k task: train800, val200, train800val200, test, as .txt lists or tensor files"),
    "fgvc": ("fgvc", "FOLDER of a fine-grained set with VPT's train.json, val.json, test.json"),
    "torchvision": ("torchvision_sets", "NAME@FOLDER, a set of torchvision, such as CIFAR100@data"),
    "hf": ("hf", "FOLDER, parquet file or Hub name that the library datasets loads"),
}


def parse_source(data: str) -> tuple[str, str]:
    """(scheme, where) of ``data``; a text without a scheme, or that is a folder's name, is a folder."""
    scheme, colon, where = data.partition(":")
    if not colon or not re.fullmatch("[a-z][a-z0-9-]+", scheme) or Path(data).is_dir():
        return "folder", data
    if scheme not in SOURCES:
        raise InputError(f"data {data!r}: the scheme {scheme!r} is unknown; {near(scheme, SOURCES)}")
    return scheme, where


def short_name(data: str) -> str:
    """The name of the data set: the last part of its place, or the set's name in torchvision."""
    if task_of_data(data, None) != "image":
        return Path(data.partition(":")[2]).resolve().name
    scheme, where = parse_source(data)
    where = where.partition("?")[0] if scheme in ("hf", "torchvision") else where
    return where.partition("@")[0] if scheme == "torchvision" else Path(where).resolve().name


def read(data: str, classes: int | None = None, report: Report = stop) -> ImageData:
    """All splits of ``data`` as its source has them; ``classes``, where known, is what labels are checked against."""
    scheme, where = parse_source(data)
    module: Any = import_module(f"orthotune.data.{SOURCES[scheme][0]}")
    found: ImageData = module.read(where, classes, report)
    return found


def scan(
    data: str | Path,
    validation: Literal["auto", "none", "join"] = "auto",
    val_fraction: float = 0.2,
    seed: int = 0,
) -> ImageData:
    """The splits of a run on ``data``, a folder or ``SCHEME:WHERE``.

    ``validation``: "auto" takes the data's val split or else a stratified share ``val_fraction`` of each class of
    train; "none" trains on all of train; "join" trains on train and val together. InputError for what cannot be used:
    nothing there, an image or a class missing, a label out of range, one image in two splits. What only makes results
    differ from published ones is in ``warnings``.
    """
    data = str(data)
    task = known_task(data)
    expect = dict(task.expect) if task else {}
    found = read(data, expect.get("classes"))
    problems = quick_check(found, expect)
    for problem in problems:
        if problem.severity == "error":
            raise InputError(f"data {data!r}: {problem.text}")
    warnings = tuple(problem.text for problem in problems if problem.severity == "warning")
    return dataclasses.replace(found, warnings=warnings).with_validation(validation, val_fraction, seed)


def read_split(data: str | Path, name: str, classes: tuple[str, ...]) -> Split:
    """One split of ``data`` whose classes are ``classes``, or in a folder some of them."""
    scheme, where = parse_source(str(data))
    if scheme == "folder":
        return folder.read_split(Path(where), name, classes)
    found = read(str(data), len(classes))
    if found.classes != classes:
        raise InputError(
            f"data {str(data)!r} has other classes than the run: {len(found.classes)} ({', '.join(found.classes[:3])}, "
            f"...), the run {len(classes)} ({', '.join(classes[:3])}, ...)"
        )
    splits = found.splits()
    if name not in splits:
        raise InputError(f"data {str(data)!r} has no split {name!r}; {near(name, splits)}")
    return splits[name]
