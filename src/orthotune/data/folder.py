"""The folder layout ``train/ [val/] test/``, each with one sub-folder per class."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orthotune.errors import InputError
from orthotune.methods import near

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"})


@dataclasses.dataclass(frozen=True)
class Split:
    """Image files and the class index of each."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: list[int]) -> Split:
        """The files at ``indices``."""
        return Split(tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices))


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The splits to train on, to choose the epoch on (None: none) and to test on (None: no ``test/``)."""

    root: Path
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None


def scan(
    root: str | Path,
    validation: Literal["auto", "none", "join"] = "auto",
    val_fraction: float = 0.2,
    seed: int = 0,
) -> ImageFolder:
    """List the images of ``root``; the classes are the sub-folders of ``train/``, sorted by name.

    ``validation``: "auto" takes ``val/`` or else a stratified share ``val_fraction`` of each class of train;
    "none" trains on all of train; "join" trains on train and val together. InputError for a missing or empty
    folder and for a class that train lacks.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"data folder {str(root)!r} does not exist")
    if not (root / "train").is_dir():
        raise InputError(f"data folder {str(root)!r} has no train/ folder with one sub-folder per class")
    classes = tuple(sorted(d.name for d in (root / "train").iterdir() if _is_class(d)))
    if len(classes) < 2:
        raise InputError(
            f"{str(root / 'train')!r} has {len(classes)} class folders: put the images of each of at least "
            "two classes into a sub-folder of their own"
        )
    train = read_split(root, "train", classes)
    empty = sorted(set(range(len(classes))) - set(train.labels))
    if empty:
        raise InputError(f"class folder {str(root / 'train' / classes[empty[0]])!r} holds no images")
    has_val = (root / "val").is_dir()
    val = read_split(root, "val", classes) if has_val and validation != "none" else None
    if validation == "join":
        if val is None:
            raise InputError(f"--validation join needs {str(root / 'val')!r}, which does not exist")
        train, val = Split(train.paths + val.paths, train.labels + val.labels), None
    elif validation == "auto" and val is None:
        train, val = stratified_split(train, val_fraction, seed)
    test = read_split(root, "test", classes) if (root / "test").is_dir() else None
    return ImageFolder(root, classes, train, val, test)


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def read_split(root: Path, name: str, classes: tuple[str, ...]) -> Split:
    """The images below ``root/name``; InputError if there are none, or a class is not in ``classes``."""
    folder = root / name
    if not folder.is_dir():
        raise InputError(f"data folder {str(root)!r} has no {name}/ folder")
    unknown = sorted(d.name for d in folder.iterdir() if _is_class(d) and d.name not in classes)
    if unknown:
        raise InputError(
            f"class {unknown[0]!r} of {str(folder)!r} is not among the {len(classes)} classes of train; "
            + near(unknown[0], classes)
        )
    paths, labels = [], []
    for label, cls in enumerate(classes):
        files = sorted(find_images(folder / cls))
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise InputError(f"{str(folder)!r} holds no images ({', '.join(sorted(EXTENSIONS))})")
    return Split(tuple(paths), tuple(labels))


def find_images(folder: Path) -> list[Path]:
    """The image files below ``folder`` (none if it does not exist), hidden ones left out."""
    return [p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]


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


def describe(folder: ImageFolder, digests: dict[Path, str]) -> dict[str, Any]:
    """The data's fingerprint: classes, counts and a SHA-256 over relative paths and contents of every image.

    ``digests`` maps each file to the SHA-256 of its content.
    """
    info: dict[str, Any] = {"classes": list(folder.classes)}
    total = hashlib.sha256()
    for name in ("train", "val", "test"):
        split: Split | None = getattr(folder, name)
        if split is None:
            info[name] = None
            continue
        counts = Counter(split.labels)
        info[name] = {
            "images": len(split),
            "per_class": [counts[i] for i in range(len(folder.classes))],
        }
        for path in split.paths:
            total.update(f"{name} {path.relative_to(folder.root).as_posix()} {digests[path]}\n".encode())
    info["sha256"] = total.hexdigest()
    return info
