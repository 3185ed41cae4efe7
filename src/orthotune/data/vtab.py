"""VTAB-1k (Zhai et al., arXiv 1910.04867): the copies that hold images and lists of them, or one tensor file a split.

A task's folder has ``train800``, ``val200``, ``train800val200`` and ``test``, either each as ``NAME.txt`` with lines
``images/000000.png LABEL``, or each as a tensor file (:mod:`orthotune.data.tensors`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orthotune.data import tensors
from orthotune.data.listed import Files, listed_split
from orthotune.data.pictures import ImageData, Report, Split, stop
from orthotune.errors import InputError

Entries = list[tuple[str, str, int | None]]


def read(where: str, classes: int | None = None, report: Report = stop) -> ImageData:
    """The task in the folder ``where``. Without ``classes`` there are as many as the largest label says.

    A copy that only has ``train800val200`` trains on a share of it, or with "join" on all of it.
    """
    root = Path(where)
    if not root.is_dir():
        raise InputError(f"data folder {where!r} does not exist")
    splits, count = (
        _lists(root, classes, report) if any(root.glob("*.txt")) else tensors.read_all(root, classes, report)
    )
    train, joined = splits.get("train800"), splits.get("train800val200")
    if train is None:
        train = joined
    if train is None:
        kinds = ", ".join(["txt", *tensors.READERS])
        raise InputError(f"{where!r} has neither train800 nor train800val200 (a file .{kinds}): it is no VTAB-1k task")
    names = tuple(str(label) for label in range(count))
    return ImageData(names, train, splits.get("val200"), splits.get("test"), joined)


def _lists(root: Path, classes: int | None, report: Report) -> tuple[dict[str, Split], int]:
    """(the splits of the lists, the number of classes)."""
    lists = {
        name: _entries(root / f"{name}.txt", report) for name in tensors.SPLITS if (root / f"{name}.txt").is_file()
    }
    known = [label for entries in lists.values() for _, _, label in entries if label is not None]
    count = classes or max(known, default=0) + 1
    files = Files(root)
    return {name: listed_split(entries, files, range(count), report) for name, entries in lists.items()}, count


def _entries(file: Path, report: Report) -> Entries:
    return list(_parsed(file, report))


def _parsed(file: Path, report: Report) -> Iterator[tuple[str, str, int | None]]:
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        image, _, label = line.strip().rpartition(" ")
        place = f"{file.name}, line {number}"
        if not image or not label.lstrip("-").isdecimal():
            report(f"{str(file)!r}, line {number}: {line!r} is not 'PATH LABEL'")
        else:
            yield place, image.strip(), int(label)
