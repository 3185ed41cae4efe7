"""Image classification sets of torchvision: ``torchvision:NAME@FOLDER``, with ``?download=true`` to fetch one."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orthotune.data.options import split_options
from orthotune.data.pictures import ImageData, Picture, Report, Split, stop
from orthotune.errors import InputError
from orthotune.methods import near

#: What the sets call our splits, the first that a set has.
_NAMES = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}


def read(where: str, classes: int | None = None, report: Report = stop) -> ImageData:
    """The set ``NAME@FOLDER``; nothing is downloaded unless ``?download=true`` says so."""
    name, options = split_options(where, ("download",))
    name, at, folder = name.partition("@")
    if not at or not folder:
        raise InputError(f"data 'torchvision:{where}' must be torchvision:NAME@FOLDER, such as CIFAR100@data")
    if options.get("download", "false") not in ("true", "false"):
        raise InputError(f"option download of data {where!r} is {options['download']!r}; it must be true or false")
    cls = _set(name)
    download = options.get("download") == "true"
    found = {split: _open(cls, name, folder, split, download) for split in _NAMES}
    if found["train"] is None:
        raise InputError(f"torchvision's {name} has no training split in {folder!r}")
    splits = {split: None if data is None else _split(data, split) for split, data in found.items()}
    labels = [label for split in splits.values() if split for label in split.labels]
    names = getattr(found["train"], "classes", None)
    if names is None or len(names) <= max(labels):
        names = range(max(labels) + 1)
    assert splits["train"] is not None
    return ImageData(tuple(map(str, names)), splits["train"], splits["val"], splits["test"])


def _set(name: str) -> Any:
    from torchvision import datasets

    candidates = {key: getattr(datasets, key) for key in datasets.__all__}
    known = [key for key, cls in candidates.items() if inspect.isclass(cls) and _split_argument(cls)]
    if name not in known:
        raise InputError(f"torchvision has no image set {name!r} with a training split; {near(name, known)}")
    return candidates[name]


def _split_argument(cls: Any) -> str | None:
    """``train`` or ``split``, as the set asks for it; None for sets that have no splits or need more than that."""
    parameters = inspect.signature(cls).parameters
    return next((p for p in ("train", "split") if p in parameters and parameters[p].default in (True, *_TRAIN)), None)


_TRAIN = _NAMES["train"]


def _open(cls: Any, name: str, folder: str, split: str, download: bool) -> Any:
    """The split, None for one that the set does not have."""
    more = {"download": True} if download and "download" in inspect.signature(cls).parameters else {}
    if _split_argument(cls) == "train":
        choices: list[dict[str, Any]] = [] if split == "val" else [{"train": split == "train"}]
    else:
        choices = [{"split": choice} for choice in _NAMES[split]]
    for choice in choices:
        try:
            return cls(folder, **choice, **more)
        except ValueError:  # the set has no split of this name
            continue
        except (RuntimeError, OSError) as error:
            text = " ".join(str(error).split())[:150]
            raise InputError(
                f"torchvision's {name} cannot be read from {folder!r} ({text}): give the folder that holds it, or "
                f"fetch it with torchvision:{name}@{folder}?download=true"
            ) from error
    return None


def _split(data: Any, split: str) -> Split:
    labels = next(
        (found for key in ("targets", "labels", "_labels") if (found := getattr(data, key, None)) is not None), None
    )
    if labels is None or len(labels) != len(data):
        labels = [data[index][1] for index in range(len(data))]
    pictures = (Picture(f"{split}/{i}", partial(_pixels, data, i), f"{split} image {i}") for i in range(len(data)))
    return Split(tuple(pictures), tuple(int(label) for label in labels))


def _pixels(data: Any, index: int) -> NDArray[np.uint8]:
    return np.asarray(data[index][0].convert("RGB"))
