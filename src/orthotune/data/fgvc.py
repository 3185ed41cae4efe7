"""Fine-grained sets with the split files of Visual Prompt Tuning (Jia et al., arXiv 2203.12119).

The folder of CUB-200-2011, NABirds, Oxford Flowers, Stanford Dogs or Stanford Cars, with ``train.json``, ``val.json``
and ``test.json`` beside the images: ``{file: class id}``. Files are relative to ``images/`` (the birds), ``Images/``
(dogs) or to the folder itself (cars, flowers; or the flowers' ``jpg/``). Class ids become 0, 1, ... in their order.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from orthotune.data.listed import Files, listed_split
from orthotune.data.pictures import ImageData, Report, stop
from orthotune.errors import InputError

_SPLITS = ("train", "val", "test")
_FOLDERS = (".", "images", "Images", "jpg")


def read(where: str, classes: int | None = None, report: Report = stop) -> ImageData:
    """The data set in the folder ``where``; its classes are those of train.json.

    With ``classes`` known, ids of train.json that no other file has are reported where train.json has too many.
    """
    root = Path(where)
    if not root.is_dir():
        raise InputError(f"data folder {where!r} does not exist")
    if not (root / "train.json").is_file():
        raise InputError(f"{where!r} has no train.json: it is no data set with VPT's split files")
    lists = {name: _ids(root / f"{name}.json", report) for name in _SPLITS if (root / f"{name}.json").is_file()}
    ids = sorted({i for i in lists["train"].values() if i is not None})
    if classes is not None and len(ids) > classes:
        elsewhere = {i for name in _SPLITS[1:] for i in lists.get(name, {}).values()}
        for file, i in list(lists["train"].items()):
            if i not in elsewhere and elsewhere:
                report(f"label {i} of image {file!r} (train.json) is out of range: there are {classes} classes")
                del lists["train"][file]
        ids = sorted({i for i in lists["train"].values() if i is not None})
    index = {i: n for n, i in enumerate(ids)}
    files = Files(root / _image_folder(root, list(lists["train"])[:20]))
    splits = {
        name: listed_split([(f"{name}.json", file, i) for file, i in entries.items()], files, index, report)
        for name, entries in lists.items()
    }
    return ImageData(tuple(map(str, ids)), splits["train"], splits.get("val"), splits.get("test"))


def _ids(file: Path, report: Report) -> dict[str, int | None]:
    """The file's entries; None for a class id that is not an integer (as text or as a number)."""
    listed: Counter[str] = Counter()

    def count(pairs: list[tuple[str, object]]) -> dict[str, object]:
        listed.update(name for name, _ in pairs)
        return dict(pairs)

    try:
        entries = json.loads(file.read_text(), object_pairs_hook=count)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"split file {str(file)!r} cannot be read: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"split file {str(file)!r} must hold {{file: class id}}")
    for name in (name for name, times in listed.items() if times > 1):
        report(f"image {name!r} stands twice in {str(file)!r}")
    return {name: int(i) if str(i).lstrip("-").isdecimal() else None for name, i in entries.items()}


def _image_folder(root: Path, files: list[str]) -> str:
    """The folder that the split files' paths start from: where most of ``files`` are, a few of which may be missing."""
    return max(_FOLDERS, key=lambda folder: sum((root / folder / file).is_file() for file in files))
