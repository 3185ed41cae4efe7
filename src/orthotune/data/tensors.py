"""One file of tensors a split, as exports of VTAB's original pipeline are: ``images`` and ``labels``.

``images`` are uint8 (N, H, W, 3), (N, H, W, 1), (N, H, W), or with the channels first, (N, 3, H, W); ``labels`` are
integers (N,). From a ``.safetensors`` file each image is read when needed; ``.npz`` and ``.pt`` are held in memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from orthotune.data.pictures import Picture, Report, Split
from orthotune.errors import InputError

SPLITS = ("train800", "val200", "train800val200", "test")

#: Gives the image of an index, and (shape, dtype) of all.
Images = tuple[Callable[[int], Any], tuple[int, ...], Any]


def read_all(root: Path, classes: int | None, report: Report) -> tuple[dict[str, Split], int]:
    """(the splits of the tensor files in ``root``, the number of classes)."""
    files = {name: file for name in SPLITS for kind in READERS if (file := root / f"{name}.{kind}").is_file()}
    opened = {name: _open(file) for name, file in files.items()}
    count = classes or max((int(labels.max()) for _, labels in opened.values()), default=0) + 1
    return {name: _split(files[name], *opened[name], count, report) for name in files}, count


def _open(file: Path) -> tuple[Images, NDArray[np.int64]]:
    try:
        images, labels = READERS[file.suffix[1:]](file)
    except KeyError as error:
        raise InputError(f"{str(file)!r} has no {error}: a split's file holds 'images' and 'labels'") from error
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        zipfile.BadZipFile,
        UnpicklingError,
        SafetensorError,
    ) as error:
        raise InputError(f"{str(file)!r} cannot be read: {' '.join(str(error).split())[:200]}") from error
    _, shape, dtype = images
    if not str(dtype).endswith(("uint8", "U8")):
        raise InputError(f"images of {str(file)!r} are {dtype}: they must be uint8, not yet scaled or normalised")
    if len(shape) not in (3, 4) or (len(shape) == 4 and 3 not in (shape[1], shape[3]) and shape[3] != 1):
        raise InputError(f"images of {str(file)!r} have the shape {list(shape)}: it must be (N, H, W, 3)")
    if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise InputError(f"labels of {str(file)!r} are {labels.dtype} {list(labels.shape)} for {shape[0]} images")
    return images, labels.astype(np.int64)


def _split(file: Path, images: Images, labels: NDArray[np.int64], classes: int, report: Report) -> Split:
    get, shape, _ = images
    channels_first = len(shape) == 4 and shape[3] not in (1, 3)
    pictures, kept = [], []
    for index, label in enumerate(labels.tolist()):
        if 0 <= label < classes:
            load = partial(_image, get, index, channels_first)
            pictures.append(Picture(f"{file.stem}/{index}", load, f"{file}, image {index}"))
            kept.append(label)
        else:
            place = f"image {index} of {str(file)!r}"
            report(f"label {label} of {place} is out of range: the classes are 0 to {classes - 1}")
    return Split(tuple(pictures), tuple(kept))


def _image(get: Callable[[int], Any], index: int, channels_first: bool) -> NDArray[np.uint8]:
    image = np.asarray(get(index))
    return np.ascontiguousarray(image.transpose(1, 2, 0) if channels_first else image)


def _read_npz(file: Path) -> tuple[Images, NDArray[Any]]:
    with np.load(file, allow_pickle=False) as arrays:
        images = arrays["images"]
        return (images.__getitem__, images.shape, images.dtype), arrays["labels"]


def _read_pt(file: Path) -> tuple[Images, NDArray[Any]]:
    import torch

    tensors = torch.load(file, map_location="cpu", weights_only=True)
    images = tensors["images"]
    return (images.__getitem__, tuple(images.shape), images.dtype), tensors["labels"].numpy()


def _read_safetensors(file: Path) -> tuple[Images, NDArray[Any]]:
    with safe_open(file, "np") as tensors:
        missing = {"images", "labels"} - set(tensors.keys())
        if missing:
            raise KeyError(sorted(missing)[0])
        images = tensors.get_slice("images")
        shape, dtype = tuple(images.get_shape()), images.get_dtype()
        return (partial(_slice, file), shape, dtype), tensors.get_tensor("labels")


def _slice(file: Path, index: int) -> Any:
    with safe_open(file, "np") as tensors:
        return tensors.get_slice("images")[index]


READERS: dict[str, Callable[[Path], tuple[Images, NDArray[Any]]]] = {
    "safetensors": _read_safetensors,
    "npz": _read_npz,
    "pt": _read_pt,
}
