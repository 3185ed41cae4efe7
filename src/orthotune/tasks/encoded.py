"""Tokenised texts, and batches of similar length; the order depends on (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from orthotune.data.images import EpochBatches, generator

#: Texts are sorted by length within so many batches, and within at most a quarter of all, so that little is padding and
#: which texts share a batch is still random.
_POOL = 50


class Encoded(Dataset[dict[str, Any]]):
    """The features of a split, and the ``records`` they were made of (several features may be of one record)."""

    def __init__(self, features: list[dict[str, Any]], records: Sequence[Any]) -> None:
        self.features, self.records = features, records
        self.left_out = 0
        self.lengths = [len(feature["input_ids"]) for feature in features]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.features[key[1]]


class LengthBatches(EpochBatches):
    """Batches of ``(epoch, index)`` of similar length: from short to long, or in random order when ``shuffle``."""

    def __init__(self, lengths: list[int], batch_size: int, *, shuffle: bool, seed: int = 0) -> None:
        super().__init__(len(lengths), batch_size, shuffle=shuffle, seed=seed)
        self.lengths = lengths

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, pool = list(range(self.count)), self.count
        rng = generator(self.seed, self.epoch)
        if self.shuffle:
            order, pool = torch.randperm(self.count, generator=rng).tolist(), self._pool()
        pools = [sorted(order[i : i + pool], key=self.lengths.__getitem__) for i in range(0, self.count, pool)]
        size = self.batch_size
        batches = [ids[i : i + size] for ids in pools for i in range(0, len(ids), size)]
        places = torch.randperm(len(batches), generator=rng).tolist() if self.shuffle else range(len(batches))
        for place in places:
            yield [(self.epoch, i) for i in batches[place]]

    def _pool(self) -> int:
        return self.batch_size * max(1, min(_POOL, self.count // (4 * self.batch_size)))


def text_loader(
    store: Encoded,
    batch_size: int,
    collate: Callable[[list[dict[str, Any]]], Any],
    *,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
) -> tuple[DataLoader[Any], LengthBatches]:
    """(loader of padded batches, its sampler)."""
    batches = LengthBatches(store.lengths, batch_size, shuffle=shuffle, seed=seed)
    data: DataLoader[Any] = DataLoader(
        store,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
    return data, batches


def order_of(batches: LengthBatches) -> list[int]:
    """The indices in the order in which a pass goes through them."""
    return [index for batch in batches for _, index in batch]
