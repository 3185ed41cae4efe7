"""Checks of a data set that read at most a few of its images, so that every run can make them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from orthotune.data.pictures import ImageData, Picture, Split

#: Images whose format is looked at in each split of a run.
SAMPLE = 8
#: Formats that lose what the image was.
LOSSY = frozenset({"JPEG", "MPO", "WEBP"})

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """What is wrong. "error": cannot be used; "warning": results differ from published ones; "note": worth knowing."""

    severity: Severity
    text: str


def quick_check(data: ImageData, expect: Mapping[str, Any]) -> list[Problem]:
    """Counts, one name in two splits, train and val against what joins them, and the format of a few images.

    ``expect``: what a protocol says of the task, of classes, train, val, test (numbers), format and size.
    """
    samples = [p for split in data.splits().values() for p in _sample(split)]
    looks = Looks()
    for picture in samples:
        looks.add(picture, picture.load())
    return [
        *check_counts(data, expect),
        *_shared_names(data),
        *_joined_labels(data),
        *looks.problems(expect, "sampled "),
    ]


def _sample(split: Split) -> list[Picture]:
    return [split.images[i] for i in np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int).tolist()]


def check_counts(data: ImageData, expect: Mapping[str, Any]) -> list[Problem]:
    """The numbers of classes and images against ``expect``."""
    found = {"classes": len(data.classes), **{name: len(split) for name, split in data.splits().items()}}
    return [
        Problem("warning", f"{key}: {found.get(key, 0):,} instead of the {expect[key]:,} of the published data set")
        for key in ("classes", "train", "val", "test")
        if key in expect and found.get(key, 0) != expect[key]
    ]


def _shared_names(data: ImageData) -> list[Problem]:
    splits = data.splits() | ({"train800val200": data.joined} if data.joined else {})
    names = {name: {p.name: p for p in split.images} for name, split in splits.items()}
    return [
        Problem("error", f"image {str(names[a][shared])!r} is in both {a} and {b}")
        for a, b in combinations(names, 2)
        if "test" in (a, b) or b != "train800val200"
        for shared in sorted(names[a].keys() & names[b].keys())
    ]


def _joined_labels(data: ImageData) -> list[Problem]:
    if data.joined is None or data.val is None:
        return []
    parts, joined = Counter(data.train.labels + data.val.labels), Counter(data.joined.labels)
    if parts == joined:
        return []
    counts = f"{len(data.train)} + {len(data.val)} images, and {len(data.joined)}"
    wrong = min(label for label in parts | joined if parts[label] != joined[label])
    return [
        Problem(
            "warning",
            f"train and val are not what train800val200 joins: {counts}; of class {data.classes[wrong]!r} "
            f"{parts[wrong]} and {joined[wrong]}",
        )
    ]


class Looks:
    """The formats and sizes of files that were read."""

    def __init__(self) -> None:
        self.count = 0
        self.lossy: list[str] = []
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.first: dict[tuple[int, int], str] = {}

    def add(self, picture: Picture, content: bytes | np.ndarray) -> None:
        """Look at the header of a file; pixels that come without one say nothing, and nor does a broken file."""
        if isinstance(content, np.ndarray):
            return
        try:
            with Image.open(io.BytesIO(content)) as image:
                form, size = image.format, image.size
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
            return
        self.count += 1
        self.sizes[size] += 1
        self.first.setdefault(size, str(picture))
        if form in LOSSY:
            self.lossy.append(str(picture))

    def problems(self, expect: Mapping[str, Any], which: str = "") -> list[Problem]:
        """Lossy copies of lossless originals, and images of other sizes than the originals."""
        found, size = [], expect.get("size")
        if expect.get("format") == "lossless" and self.lossy:
            found.append(
                f"{len(self.lossy):,} of {self.count:,} {which}images are lossy copies (JPEG) of lossless originals, "
                f"such as {self.lossy[0]!r}: accuracies can differ by ten points"
            )
        if isinstance(size, list | tuple):
            for other, count in self.sizes.items():
                if other != tuple(size):
                    found.append(
                        f"{count:,} of {self.count:,} {which}images are {_pixels(other)} pixels and not "
                        f"{_pixels(size)}, such as {self.first[other]!r}: resized copies"
                    )
        elif size == "varied" and len(self.sizes) == 1 and self.count > 1:
            (only,) = self.sizes
            found.append(
                f"all {self.count:,} {which}images are {_pixels(only)} pixels; the originals vary: resized copies"
            )
        return [Problem("warning", text) for text in found]


def _pixels(size: Any) -> str:
    return f"{size[0]} x {size[1]}"
