"""The whole check of a data set: every image is read, and every problem listed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orthotune.data.images import decode
from orthotune.data.pictures import ImageData, Picture, Split
from orthotune.data.quick import Looks, Problem, quick_check
from orthotune.data.sources import read
from orthotune.errors import InputError
from orthotune.progress import track
from orthotune.tasks import task_of_data


@dataclass(frozen=True)
class Checked:
    """What a check found: the number of classes and of images of each split (empty: nothing could be read)."""

    counts: dict[str, int]
    problems: list[Problem]


def check(data: str, expect: Mapping[str, Any] | None = None, *, quick: bool = False) -> Checked:
    """Check ``data`` against itself and ``expect`` (of a protocol's task); ``quick``: without reading every image.

    Listed are: each missing or broken image, each label out of range, each image that two splits share (by its name, or
    by its pixels), images that occur twice in a split, train and val that are not what joins them, counts, lossy and
    resized copies. Of texts: what cannot be read, counts, and texts that two splits share.
    """
    expect = expect or {}
    if task_of_data(data, None) != "image":
        from orthotune.texts.check import check_texts

        return Checked(*check_texts(data, expect))
    problems: list[Problem] = []
    try:
        found = read(data, expect.get("classes"), lambda text: problems.append(Problem("error", text)))
    except InputError as error:
        return Checked({}, [*problems, Problem("error", str(error))])
    if quick:
        problems += quick_check(found, expect)
    else:
        seen = _Seen(found)
        problems += quick_check(found, {k: v for k, v in expect.items() if k not in ("format", "size")})
        problems += [*seen.broken, *seen.shared(), *seen.not_joined(), *seen.looks.problems(expect), *seen.twice()]
    problems += _untrained(found)
    counts = {"classes": len(found.classes), **{name: len(split) for name, split in found.splits().items()}}
    return Checked(counts, problems)


def _untrained(data: ImageData) -> list[Problem]:
    missing = sorted(set(range(len(data.classes))) - set((data.joined or data.train).labels))
    if not missing:
        return []
    names = ", ".join(repr(data.classes[i]) for i in missing[:3])
    return [Problem("note", f"{len(missing)} of {len(data.classes)} classes have no training image, such as {names}")]


class _Seen:
    """The pixels of every image, as digests, and what their files look like."""

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.looks = Looks()
        self.broken: list[Problem] = []
        self.digests = {name: self._read(name, split) for name, split in data.splits().items()}
        self.joined = None if data.joined in (None, data.train) else self._read("train800val200", data.joined)

    def _read(self, name: str, split: Split | None) -> list[str]:
        """The digest of each image of ``split``, empty for one that cannot be decoded."""
        assert split is not None
        digests = []
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for picture, (content, found) in zip(
                split.images, track(pool.map(_pixels, split.images), f"checking {name}", len(split)), strict=True
            ):
                if isinstance(found, Problem):
                    self.broken.append(found)
                    digests.append("")
                    continue
                digests.append(found)
                self.looks.add(picture, content)
        return digests

    def shared(self) -> list[Problem]:
        """Images of which two splits hold the same pixels under different names."""
        found = []
        splits = self.data.splits()
        for a, b in combinations(splits, 2):
            first = dict(zip(reversed(self.digests[a]), reversed(splits[a].images), strict=True))
            for digest, picture in zip(self.digests[b], splits[b].images, strict=True):
                same = first.get(digest) if digest else None
                if same is not None and same.name != picture.name:
                    text = f"image {str(picture)!r} of {b} has the same pixels as {str(same)!r} of {a}"
                    found.append(Problem("error", text))
        return found

    def twice(self) -> list[Problem]:
        """Images that occur more than once in a split."""
        found = []
        for name, split in self.data.splits().items():
            places = defaultdict(list)
            for index, digest in enumerate(self.digests[name]):
                places[digest].append(index)
            for digest, indices in places.items():
                if digest and len(indices) > 1:
                    labels = sorted({self.data.classes[split.labels[i]] for i in indices})
                    images = ", ".join(repr(str(split.images[i])) for i in indices[:3])
                    classes = f"of the classes {', '.join(labels)}" if len(labels) > 1 else f"of class {labels[0]}"
                    found.append(Problem("note", f"{len(indices)} images of {name} are the same, {classes}: {images}"))
        return found

    def not_joined(self) -> list[Problem]:
        """Images of train800val200 that neither train nor val has with the same label, and the other way round."""
        if self.joined is None or self.data.joined is None or self.data.val is None:
            return []
        parts = self.data.train + self.data.val
        ours = Counter(zip(self.digests["train"] + self.digests["val"], parts.labels, strict=True))
        theirs = Counter(zip(self.joined, self.data.joined.labels, strict=True))
        only = [(ours - theirs, parts, self.digests["train"] + self.digests["val"], "is not in train800val200")]
        only += [(theirs - ours, self.data.joined, self.joined, "of train800val200 is neither in train nor in val")]
        return [
            Problem("warning", f"image {str(picture)!r} {what} with its label {label}")
            for extra, split, digests, what in only
            for picture, digest, label in zip(split.images, digests, split.labels, strict=True)
            if digest and (digest, label) in extra
        ]


def _pixels(picture: Picture) -> tuple[bytes | NDArray[np.uint8], str | Problem]:
    """(the content, the digest of its RGB pixels or what is wrong)."""
    try:
        content = picture.load()
        image = decode(content, picture)
    except (InputError, OSError) as error:
        return b"", Problem("error", str(error))
    return content, hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).hexdigest()
