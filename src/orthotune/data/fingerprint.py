"""What identifies a data set in a result: classes, counts, and a SHA-256 over every image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orthotune.data.pictures import ImageData


def digest(content: bytes | NDArray[np.uint8]) -> str:
    """SHA-256 of an encoded image, or of pixels and their shape."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha256(f"{content.shape} ".encode() + content.tobytes()).hexdigest()


def describe(data: ImageData, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The data's fingerprint: classes, counts, and a SHA-256 over name, label and content of every image.

    ``digests`` maps the name of each image to :func:`digest` of its content; without it every image is read.
    """
    info: dict[str, Any] = {"classes": list(data.classes), "val": None, "test": None}
    total = hashlib.sha256()
    for name, split in data.splits().items():
        counts = Counter(split.labels)
        info[name] = {
            "images": len(split),
            "per_class": [counts[i] for i in range(len(data.classes))],
        }
        for picture, label in zip(split.images, split.labels, strict=True):
            content = digest(picture.load()) if digests is None else digests[picture.name]
            total.update(f"{name} {picture.name} {label} {content}\n".encode())
    info["sha256"] = total.hexdigest()
    info["warnings"] = list(data.warnings)
    return info
