"""Synthetic copies of VTAB-1k's and FGVC's layouts: their folders, file names, formats, counts and classes.

The pictures are flat colours with a number drawn into them, each another one. Where the originals have one size, so do
the pictures; where the originals vary, they are small.
"""

from __future__ import annotations

import io
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from orthotune.protocols import Protocol, Task, load_protocol

LOSSLESS = "lossless"


@dataclass(frozen=True)
class Shrink:
    """How much smaller a copy is than the original: at most so many images of a split (None: as many)."""

    images: int | None = None

    def count(self, wanted: int) -> int:
        """The number of images to make instead of ``wanted``."""
        return wanted if self.images is None else min(wanted, self.images)


def make(root: Path, protocol: Protocol, task: Task, shrink: Shrink = Shrink(), form: str | None = None) -> Path:
    """Write the task's copy where the protocol looks for it below ``root``; its folder.

    ``form``: "PNG" or "JPEG" for another format than the original's.
    """
    folder = Path(task.at(str(root)).data.partition(":")[2])
    folder.mkdir(parents=True)
    pictures = Pictures(task, form)
    {"vtab-1k": _vtab, "fgvc": _fgvc}[protocol.name](folder, task, shrink, pictures)
    return folder


class Pictures:
    """Encoded pictures of a task, no two the same."""

    def __init__(self, task: Task, form: str | None = None) -> None:
        self.form = form or ("PNG" if task.expect.get("format") == LOSSLESS else "JPEG")
        self.size = task.expect.get("size")
        self.made = 0

    @property
    def suffix(self) -> str:
        """Of the file names."""
        return ".png" if self.form == "PNG" else ".jpg"

    def next(self) -> bytes:
        """Another picture: its number in base 16 as 8 x 8 blocks of one grey each (JPEG keeps them), six to a row."""
        number, self.made = self.made, self.made + 1
        width, height = self.size if isinstance(self.size, list) else (32 + number % 2 * 8, 16 + number % 3 * 8)
        image = Image.new("RGB", (width, height), (number % 251, number // 251 % 241, 40))
        for place in range(6):
            grey = 16 * (number >> 4 * place & 15)
            x, y = place % 4 * 8, place // 4 * 8
            image.paste((grey, grey, grey), (x, y, x + 8, y + 8))
        file = io.BytesIO()
        image.save(file, self.form, compress_level=1, compress_type=zlib.Z_RLE, quality=90)
        return file.getvalue()


def _vtab(folder: Path, task: Task, shrink: Shrink, pictures: Pictures) -> None:
    """``images/SPLIT/000000.png`` and ``SPLIT.txt``, as the script makes them that most public copies come from."""
    rng = random.Random(task.name)
    classes = task.expect["classes"]
    parts: dict[str, list[tuple[bytes, int]]] = {}
    for name, key in (("train800", "train"), ("val200", "val"), ("test", "test")):
        parts[name] = []
        lines = []
        for index in range(shrink.count(task.expect[key])):
            content, label = pictures.next(), index if index < classes else rng.randrange(classes)
            file = f"images/{name}/{index:06d}{pictures.suffix}"
            _write(folder / file, content)
            lines.append(f"{file} {label}\n")
            if name != "test":
                parts[name].append((content, label))
        (folder / f"{name}.txt").write_text("".join(lines))
    lines = []
    for index, (content, label) in enumerate(parts["train800"] + parts["val200"]):
        file = f"images/train800val200/{index:06d}{pictures.suffix}"
        _write(folder / file, content)
        lines.append(f"{file} {label}\n")
    (folder / "train800val200.txt").write_text("".join(lines))


def _fgvc(folder: Path, task: Task, shrink: Shrink, pictures: Pictures) -> None:
    """The data set's own folders, and VPT's ``train.json``, ``val.json``, ``test.json``."""
    naming = _NAMING[task.name]
    classes = task.expect["classes"]
    number = 0
    for split in ("train", "val", "test"):
        entries = {}
        for index in range(max(classes, shrink.count(task.expect[split]))):
            label = index % classes
            number += 1
            file = naming.file(number, label)
            _write(folder / naming.folder / file, pictures.next())
            entries[file] = naming.first + label
        (folder / f"{split}.json").write_text(json.dumps(entries))


@dataclass(frozen=True)
class _Naming:
    """Where a set's images are, what their files are called, and its first class id."""

    folder: str
    pattern: str
    first: int = 1

    def file(self, number: int, label: int) -> str:
        """The path of an image below ``folder``."""
        return self.pattern.format(number=number, id=self.first + label)


_NAMING = {
    "cub200": _Naming("images", "{id:03d}.Species_{id}/Species_{id}_{number:04d}_{number}.jpg"),
    "nabirds": _Naming("images", "{id:04d}/{number:032x}.jpg", 0),
    "flowers102": _Naming(".", "jpg/image_{number:05d}.jpg"),
    "stanford_dogs": _Naming("Images", "n{id:08d}-breed_{id}/n{id:08d}_{number}.jpg", 0),
    "stanford_cars": _Naming(".", "car_ims/{number:06d}.jpg"),
}


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)


Damage = Literal["missing image", "label out of range", "overlapping splits"]


def damage(folder: Path, what: Damage) -> str:
    """Damage a copy, and return the name of the image that a check must name."""
    return _damage_lists(folder, what) if (folder / "test.txt").is_file() else _damage_json(folder, what)


def _damage_lists(folder: Path, what: Damage) -> str:
    test = (folder / "test.txt").read_text().splitlines()
    image, _, label = test[-1].partition(" ")
    if what == "missing image":
        (folder / image).unlink()
    elif what == "label out of range":
        (folder / "test.txt").write_text("\n".join([*test[:-1], f"{image} 9999"]) + "\n")
    else:
        val = (folder / "val200.txt").read_text().splitlines()
        (folder / "val200.txt").write_text("\n".join([*val[:-1], f"{image} {label}"]) + "\n")
    return Path(image).name


def _damage_json(folder: Path, what: Damage) -> str:
    lists: dict[str, dict[str, Any]] = {
        s: json.loads((folder / f"{s}.json").read_text()) for s in ("train", "val", "test")
    }
    image, label = list(lists["test"].items())[-1]
    if what == "missing image":
        next(folder.rglob(Path(image).name)).unlink()
    elif what == "label out of range":
        lists["test"][image] = 9999
    else:
        lists["train"][image] = label
    for split, entries in lists.items():
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return Path(image).name


def tasks() -> Iterator[tuple[Protocol, Task]]:
    """The 19 tasks of VTAB-1k and the 5 of FGVC."""
    for name in ("vtab-1k", "fgvc"):
        protocol = load_protocol(name)
        for task in protocol.tasks.values():
            yield protocol, task
