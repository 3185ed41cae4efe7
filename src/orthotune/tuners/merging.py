"""Merging adapters into the base weight and taking them out again, for every method and every base layer."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor

from orthotune.errors import InputError
from orthotune.tuners.merged_weight import MergedWeight
from orthotune.tuners.sharding import check_whole


class MergingLayer(BaseTunerLayer):
    """A layer that adapters can be merged into; where the base weight is no plain tensor, a host says what it is."""

    if TYPE_CHECKING:  # supplied by AdapterLayer
        base_layer: Any
        module_name: str
        own_adapters: Any
        adapted_weight: Any
        merged_adapters: list[str]

    # what merging replaced, so that unmerging gives back the same bits: weight, bias, checksum of the merged weight
    _before_merge: tuple[Any, Tensor | None, int] | None = None
    _merged_weight: MergedWeight

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype that a merged weight is rounded to."""
        return self.get_base_layer().weight.dtype

    def base_weight(self) -> Tensor:
        """Return the base weight as floating-point numbers, in the base layout."""
        return self.get_base_layer().weight

    def set_base_weight(self, weight: Tensor) -> None:
        """Replace the base weight by ``weight``, in ``weight_dtype``."""
        self.get_base_layer().weight.data = weight

    def stored_weight(self) -> Tensor:
        """Return the base weight as it is stored."""
        return self.get_base_layer().weight.data

    def restore_weight(self, stored: Tensor) -> None:
        """Put back what :meth:`stored_weight` returned, on the device of the present weight."""
        weight = self.get_base_layer().weight
        weight.data = stored.to(weight.data)

    def weight_tensors(self) -> list[Tensor]:
        """Return the tensors that the stored base weight consists of."""
        return [self.get_base_layer().weight.data]

    def merge_obstacle(self, adapter: str) -> str | None:
        """Say why an adapter cannot be merged into the layer; None if it can."""
        return None

    def check_mergeable(self, adapters: list[str]) -> None:
        """Raise InputError if one of the adapters has no merged form."""
        for adapter in adapters:
            if obstacle := self.merge_obstacle(adapter):
                raise InputError(f"adapter {adapter!r} cannot be merged into layer {self.module_name!r}: {obstacle}")

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the adapters into the base weight. The weight before is kept, so :meth:`unmerge` is exact.

        Args:
            safe_merge: refuse a result that is not finite, leaving the layer as it was.
            adapter_names: which adapters; by default the active ones.

        Raises InputError, a ValueError, if an adapter has no merged form or ``safe_merge`` finds a NaN or an infinity.
        """
        adapters = self.own_adapters(check_adapters_to_merge(self, adapter_names))
        if not adapters:
            return
        self.check_mergeable(adapters)
        if isinstance(self.base_layer, BaseTunerLayer) and not self.base_layer.merged:
            # another method's adapter lies beneath this one, which acts on its result
            self.base_layer.merge(safe_merge=safe_merge)
        base = self.get_base_layer()
        check_whole(base, self.module_name, "merged")
        self._merged_weight.clear()
        weight, bias = self.adapted_weight(adapters)
        weight = weight.to(self.weight_dtype).contiguous()
        if safe_merge and not all(t.isfinite().all() for t in (weight, bias) if t is not None):
            raise InputError(
                f"NaNs detected in the merged weights. The adapter {', '.join(adapters)} seems to be broken in layer "
                f"{self.module_name!r}; nothing was merged into it. Load a checkpoint from before the loss diverged"
            )
        if self._before_merge is None:
            before = self.stored_weight(), None if bias is None else base.bias.data
        else:
            before = self._before_merge[:2]
        self.set_base_weight(weight)
        if bias is not None:
            base.bias.data = bias.to(base.bias.dtype)
        self._before_merge = (*before, _checksum(self.weight_tensors()))
        self.merged_adapters.extend(adapters)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base weight back, bit for bit.

        If something else has changed the weight since (another method merged into it), the change is kept and the
        adapters' part is subtracted instead, which rounds.
        """
        if not self.merged or self._before_merge is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base = self.get_base_layer()
        check_whole(base, self.module_name, "unmerged")
        weight, bias, checksum = self._before_merge
        changed = _checksum(self.weight_tensors()) != checksum
        current = self.base_weight().detach() if changed else None
        current_bias = None if bias is None else base.bias.data
        self.restore_weight(weight)
        if bias is not None:
            base.bias.data = bias.to(current_bias)
        if current is not None:
            merged, merged_bias = self.adapted_weight(self.own_adapters(self.merged_adapters))
            self.set_base_weight((current - (merged - self.base_weight())).to(self.weight_dtype))
            if current_bias is not None and merged_bias is not None:
                base.bias.data = (current_bias - (merged_bias - base.bias)).to(current_bias.dtype)
        self._before_merge = None
        self.merged_adapters = []


def _checksum(tensors: list[Tensor]) -> int:
    """Sum the tensors' bits as integers: exact, whatever the order of summation."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return sum(
        int(tensor.contiguous().view(kinds[tensor.element_size()]).sum(dtype=torch.int64).item()) for tensor in tensors
    )
