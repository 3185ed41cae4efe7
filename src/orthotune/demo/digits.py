"""Scikit-learn's handwritten digits (1,797 images of 8x8, UCI, Alpaydin and Kaynak 1998) as image folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(root: Path, digits: range, *, train: int | None, seed: int) -> Path:
    """Write ``root/train`` and ``root/test`` with a sub-folder per digit, split by ``seed``; returns ``root``.

    ``train`` images a class go to train (None: four fifths), all others to test.
    """
    data = load_digits()
    rng = np.random.default_rng(seed)
    for digit in digits:
        images = data.images[data.target == digit]
        count = len(images) * 4 // 5 if train is None else train
        for rank, index in enumerate(rng.permutation(len(images))):
            folder = root / ("train" if rank < count else "test") / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            # grey values run from 0 to 16
            pixels = np.round(images[index] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return root
