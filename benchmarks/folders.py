"""Parts of image folders, as folders of links."""

from __future__ import annotations

import os
from pathlib import Path


def view(data: Path, out: Path, splits: dict[str, tuple[str, slice]]) -> Path:
    """Return a folder of links to images of ``data``: by new split, the split to take from and which of each class."""
    for split, (source, which) in splits.items():
        for folder in sorted(p for p in (data / source).iterdir() if p.is_dir()):
            target = out / split / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[which]:
                if not (target / image.name).exists():
                    os.symlink(image.resolve(), target / image.name)
    return out


def subset(data: Path, out: Path, train: int, test: int) -> Path:
    """Return a folder of links to about so many images of train/ and test/: the first of each class, at least two."""
    splits = {}
    for split, count in (("train", train), ("test", test)):
        classes = sum(folder.is_dir() for folder in (data / split).iterdir())
        splits[split] = (split, slice(max(2, count // classes)))
    return view(data, out, splits)
