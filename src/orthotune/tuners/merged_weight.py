"""Keep a layer's adapted weight between calls in evaluation, until something it was made of changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALL = 2**16  # numbers up to which a tensor on the CPU is compared by value

Weights = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class _Snapshot:
    """What shows that a tensor is still the same: where it lies, its version and, if that is cheap, its values.

    An edit through ``.data`` leaves the version as it is; the values show it.
    """

    address: int
    version: int
    kind: tuple[object, ...]
    values: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> _Snapshot:
        kind = tensor.dtype, tensor.shape, tensor.device
        small = tensor.device.type == "cpu" and tensor.numel() <= SMALL
        return cls(tensor.data_ptr(), tensor._version, kind, tensor.detach().clone() if small else None)

    def holds_for(self, tensor: Tensor) -> bool:
        same = (self.address, self.version) == (tensor.data_ptr(), tensor._version)
        same = same and self.kind == (tensor.dtype, tensor.shape, tensor.device)
        return same and (self.values is None or torch.equal(self.values, tensor))


class MergedWeight:
    """The adapted weight and bias of one layer, as merging would make them. A copy of it, or a pickle, is empty."""

    _weights: Weights | None = None
    _sources: tuple[object, ...] = ()
    _snapshots: tuple[_Snapshot, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return self._weights is None

    def get(self, sources: Sequence[object], tensors: Sequence[Tensor], make: Callable[[], Weights]) -> Weights:
        """Return what ``make`` returned before if ``sources`` (by identity) and ``tensors`` are what they were then."""
        same = len(sources) == len(self._sources) and all(a is b for a, b in zip(sources, self._sources, strict=True))
        same = same and len(tensors) == len(self._snapshots)
        same = same and all(s.holds_for(t) for s, t in zip(self._snapshots, tensors, strict=True))
        if self._weights is None or not same:
            self.clear()
            self._weights = make()
            self._sources, self._snapshots = tuple(sources), tuple(_Snapshot.of(t) for t in tensors)
        return self._weights

    def clear(self) -> None:
        """Give the memory back."""
        self._weights, self._sources, self._snapshots = None, (), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> MergedWeight:
        return MergedWeight()

    def __reduce__(self) -> tuple[type[MergedWeight], tuple[()]]:
        return MergedWeight, ()
