"""Splits given as a list of (file, label), as VTAB-1k's text files and VPT's JSON files are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from orthotune.data.pictures import Report, Split, file_picture
from orthotune.errors import InputError


class Files:
    """The files below a folder; each sub-folder is listed once, which is quicker than a look for every file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, frozenset[str]] = {}

    def has(self, relative: str) -> bool:
        """Whether the file is there."""
        path = self.root / relative
        if path.parent not in self._listed:
            found = os.listdir(path.parent) if path.parent.is_dir() else []
            self._listed[path.parent] = frozenset(found)
        return path.name in self._listed[path.parent]


def listed_split(
    entries: Iterable[tuple[str, str, int | None]], files: Files, classes: range | dict[int, int], report: Report
) -> Split:
    """The split of ``entries`` (place in the list, file, label); each missing file and wrong label is reported by name.

    ``classes``: the labels there are; a dict also says which class index each is.
    """
    images, labels = [], []
    for place, file, label in entries:
        path = files.root / file
        if label is None or label not in classes:
            known = f"0 to {len(classes) - 1}" if isinstance(classes, range) else f"the {len(classes)} of train"
            report(f"label {label} of image {str(path)!r} ({place}) is out of range: the classes are {known}")
        elif not files.has(file):
            report(f"image {str(path)!r} ({place}) does not exist")
        else:
            images.append(file_picture(path, Path(file).as_posix()))
            labels.append(classes[label])
    if not images:
        raise InputError(f"{str(files.root)!r}: a split holds no images")
    return Split(tuple(images), tuple(labels))
