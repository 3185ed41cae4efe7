"""What every reader of data gives: pictures by name, splits of them, and a data set of splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orthotune.errors import InputError

#: What a reader tells of a problem that it finds. Reading for a run stops there; a check goes on without the image.
Report = Callable[[str], None]


def stop(problem: str) -> None:
    """The report of a run: the first problem is an InputError."""
    raise InputError(problem)


@dataclass(frozen=True)
class Picture:
    """One image, read only when needed.

    ``name`` is its place in the data set, the same on every machine; ``load()`` gives the encoded file, or its pixels
    as uint8 (H, W), (H, W, 1) or (H, W, 3). ``where`` is what messages call it.
    """

    name: str
    load: Callable[[], bytes | NDArray[np.uint8]] = field(compare=False, repr=False)
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.where or self.name


def file_picture(path: Path, name: str) -> Picture:
    """The picture in a file."""
    return Picture(name, path.read_bytes, str(path))


@dataclass(frozen=True)
class Split:
    """Pictures and the class index of each."""

    images: tuple[Picture, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __add__(self, other: Split) -> Split:
        return Split(self.images + other.images, self.labels + other.labels)

    def select(self, indices: list[int]) -> Split:
        """The pictures at ``indices``."""
        return Split(tuple(self.images[i] for i in indices), tuple(self.labels[i] for i in indices))


@dataclass(frozen=True)
class ImageData:
    """The splits to train on, to choose the epoch on (None: none) and to test on (None: not tested).

    ``joined`` is what the data set itself gives as train and val together, None where that is just both.
    ``warnings`` says what makes results on it differ from published ones.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    joined: Split | None = None
    warnings: tuple[str, ...] = ()

    def splits(self) -> dict[str, Split]:
        """Those of train, val and test that there are."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def with_validation(self, choice: str, fraction: float, seed: int) -> ImageData:
        """The data set with the splits of a run.

        "auto" takes ``val`` or else a stratified share ``fraction`` of each class of train; "none" trains on all of
        train; "join" trains on train and val together.
        """
        train, val = self.train, self.val
        if choice == "none":
            val = None
        elif choice == "join":
            if self.joined is None and val is None:
                raise InputError("--validation join needs a val split (a folder of images: val/), which does not exist")
            train, val = self.joined or (train + val if val else train), None
        elif val is None:
            train, val = stratified_split(train, fraction, seed)
        return dataclasses.replace(self, train=train, val=val)


def stratified_split(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """(rest, share): of each class, ``fraction`` of the images (at least one where there are two) by ``seed``."""
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(split.labels):
        by_class.setdefault(label, []).append(index)
    for label in sorted(by_class):
        indices = by_class[label]
        count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
        chosen += rng.permutation(indices)[:count].tolist()
    if not chosen:
        raise InputError("one image a class leaves none to validate on: use --validation none or add a val/ folder")
    taken = set(chosen)
    return split.select([i for i in range(len(split)) if i not in taken]), split.select(sorted(taken))
