"""Decoding, resizing and augmenting images; everything random depends on (seed, epoch, index) alone.

So a run that is interrupted and resumed sees the very same pixels, whatever the number of workers.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from orthotune.data.decoded import DECODED
from orthotune.data.fingerprint import digest
from orthotune.data.pictures import Picture, Split
from orthotune.errors import InputError
from orthotune.models.build import Preprocessing
from orthotune.progress import track

Augment = Literal["vtab", "fgvc", "flip", "none"]
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def generator(*keys: int) -> torch.Generator:
    """A generator that depends on ``keys`` (such as seed, epoch, index) alone."""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def decode(data: bytes | NDArray[np.uint8], picture: Picture) -> Image.Image:
    """The RGB image in ``data``, a file or pixels; InputError names ``picture`` if it cannot be decoded."""
    if not isinstance(data, bytes):
        return Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data).convert("RGB")
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(re.sub(r"<_io\.BytesIO[^>]*>", "", str(error)).split()).replace(repr(data), "")[:120]
        raise InputError(f"image {str(picture)!r} cannot be decoded ({reason}): replace it or take it out") from error


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize(image: Image.Image, how: Preprocessing) -> Image.Image:
    """The image at the model's size, without randomness: squashed, or its short side resized and centre cut."""
    resample = _RESAMPLING.get(how.interpolation, Image.Resampling.BICUBIC)
    size = how.size
    if how.resize == "squash":
        return image.resize((size, size), resample)
    width, height = image.size
    side = min(width, height) * how.crop_pct
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), resample, box=(left, top, left + side, top + side))


def random_box(width: int, height: int, rng: torch.Generator) -> tuple[float, float, float, float]:
    """A box of 8 to 100 % of the area, aspect ratio 3/4 to 4/3 (log-uniform): the usual random resized crop."""
    for _ in range(10):
        area_draw, ratio_draw, x_draw, y_draw = torch.rand(4, generator=rng).tolist()
        area = (0.08 + 0.92 * area_draw) * width * height
        ratio = math.exp((2 * ratio_draw - 1) * math.log(4 / 3))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            x, y = x_draw * (width - w), y_draw * (height - h)
            return x, y, x + w, y + h
    side = min(width, height)
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


class ImageStore(Dataset[tuple[Tensor, int]]):
    """The images of a split as uint8 tensors (3, size, size), decoded once where the budget of bytes allows.

    Building it decodes every image (in threads), so a corrupt one is an InputError before any work.
    An item is asked for by ``(epoch, index)``. ``digests`` holds the SHA-256 of each image's file by its
    name in the data set.
    """

    def __init__(
        self,
        split: Split,
        how: Preprocessing,
        augment: Augment | None = None,
        *,
        seed: int = 0,
        cache_bytes: int = 1 << 30,
        name: str = "images",
    ) -> None:
        self.split, self.how, self.augment, self.seed = split, how, augment, seed
        self.digests: dict[str, str] = {}
        self.cached_bytes = 0
        self._cache: dict[int, Tensor] = {}
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            decoded = pool.map(self._read, split.images)
            for index, (tensor, content) in enumerate(track(decoded, f"reading {name}", len(split))):
                self.digests[split.images[index].name] = content
                if self.cached_bytes + tensor.numel() <= cache_bytes:
                    self._cache[index] = tensor
                    self.cached_bytes += tensor.numel()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image = self._cache.get(index)
        if image is None:
            image, _ = self._read(self.split.images[index])
        if self.augment in ("fgvc", "flip"):
            image = self._augmented(image, generator(self.seed, epoch, index))
        return image, self.split.labels[index]

    def _read(self, picture: Picture) -> tuple[Tensor, str]:
        """(pixels, SHA-256 of the source); at the model's size, or the source's where crops are cut from it."""
        data = picture.load()
        sha256 = digest(data)
        how = None if self.augment == "fgvc" else self.how
        return DECODED.get((sha256, how), lambda: self._pixels(data, picture)), sha256

    def _pixels(self, data: bytes | NDArray[np.uint8], picture: Picture) -> Tensor:
        image = decode(data, picture)
        return to_tensor(image if self.augment == "fgvc" else resize(image, self.how))

    def _augmented(self, image: Tensor, rng: torch.Generator) -> Tensor:
        if self.augment == "fgvc":
            source = Image.fromarray(image.permute(1, 2, 0).numpy())
            resample = _RESAMPLING.get(self.how.interpolation, Image.Resampling.BICUBIC)
            box = random_box(*source.size, rng)
            image = to_tensor(source.resize((self.how.size, self.how.size), resample, box=box))
        return image.flip(-1) if torch.rand((), generator=rng) < 0.5 else image


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)``: in order, or shuffled by (seed, epoch) when ``shuffle``."""

    def __init__(self, count: int, batch_size: int, *, shuffle: bool, seed: int = 0) -> None:
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self.shuffle:
            order = torch.randperm(self.count, generator=generator(self.seed, self.epoch)).tolist()
        else:
            order = list(range(self.count))
        for start in range(0, self.count, self.batch_size):
            yield [(self.epoch, i) for i in order[start : start + self.batch_size]]


def loader(
    store: ImageStore, batch_size: int, *, shuffle: bool = False, seed: int = 0, workers: int = 0
) -> tuple[DataLoader[tuple[Tensor, Tensor]], EpochBatches]:
    """(loader of uint8 images (N, 3, S, S) and labels (N,), its batches; set ``batches.epoch`` before a pass)."""
    batches = EpochBatches(len(store), batch_size, shuffle=shuffle, seed=seed)
    data: DataLoader[Any] = DataLoader(
        store,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
    return data, batches


def normalise(images: Tensor, how: Preprocessing, device: torch.device) -> Tensor:
    """uint8 (N, 3, S, S) to floats on ``device``: (x / 255 - mean) / std per channel."""
    mean = torch.tensor(how.mean, device=device).view(3, 1, 1)
    std = torch.tensor(how.std, device=device).view(3, 1, 1)
    return images.to(device, non_blocking=True).float().div_(255).sub_(mean).div_(std)
