"""A data folder of scikit-learn's digits and a vision transformer small enough to train in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from orthotune.training import FitConfig

MODEL_ARGS = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def write_digits(root: Path, *, train: int = 10, test: int = 6, classes: int = 3, val: int = 0) -> Path:
    """``train/ [val/] test/`` with so many 8x8 images of the first ``classes`` digits a class."""
    digits = load_digits()
    for digit in range(classes):
        images = iter(digits.images[digits.target == digit])
        for split, count in (("train", train), ("val", val), ("test", test)):
            if not count:
                continue
            folder = root / split / f"digit{digit}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = (next(images) * 255 / 16).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return root


def settings(data: Path, out: Path, method: str = "goft", **changes: Any) -> dict[str, Any]:
    """Arguments of FitConfig for a run of a second or less."""
    return {
        "model": "vit_tiny_patch16_224",
        "random_weights": True,
        "image_size": 16,
        "model_args": dict(MODEL_ARGS),
        "data": str(data),
        "out": str(out),
        "method": method,
        "epochs": 2,
        "batch_size": 8,
        "device": "cpu",
        **changes,
    }


def config(data: Path, out: Path, method: str = "goft", **changes: Any) -> FitConfig:
    """FitConfig of ``settings``."""
    return FitConfig(**settings(data, out, method, **changes))
