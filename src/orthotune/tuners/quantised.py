"""The host for linear layers with a quantised weight."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import InputError
from orthotune.tuners.hosts import LinearHost
from orthotune.tuners.quantisers import Quantised, as_quantised


class QuantisedHost(LinearHost):
    """A linear layer with a quantised weight (:mod:`orthotune.tuners.quantisers`), run by calling it, always.

    Merging dequantises the weight and quantises the adapted one with the same settings, which rounds.
    """

    @property
    def quantised(self) -> Quantised:
        """What is known of the base layer."""
        quantised = as_quantised(self.get_base_layer())
        assert quantised is not None
        return quantised

    @classmethod
    def matrix_shape(cls, base_layer: Any) -> tuple[int, int]:
        quantised = as_quantised(base_layer)
        assert quantised is not None
        return quantised.shape

    @property
    def is_plain(self) -> bool:
        return False

    def run_base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output. Raises InputError if it has no gradient for an input that wants one."""
        y = super().run_base(x, *args, **kwargs)
        if torch.is_grad_enabled() and x.requires_grad and not y.requires_grad:
            base = self.get_base_layer()
            raise InputError(
                f"layer {self.module_name!r}, a {type(base).__name__}, gives no gradient "
                "for its input, so the adapter cannot be trained: load the model with a kernel that has a backward "
                "pass (GPTQ: the torch or triton backend; torchao: a weight-only configuration)"
            )
        return y

    def update_layer(self, adapter_name: str, config: Any) -> None:
        super().update_layer(adapter_name, config)
        base = self.get_base_layer()
        tensors = (*base.parameters(recurse=False), *base.buffers(recurse=False))
        # PEFT looks for a weight by name, which not every library's layer has
        for tensor in self.adapter_tensors(adapter_name):
            if not tensor.is_meta:
                tensor.data = tensor.data.to(tensors[0].device)

    def merge_obstacle(self, adapter: str) -> str | None:
        obstacle = self.quantised.obstacle
        if obstacle is None:
            return super().merge_obstacle(adapter)
        return (
            f"it is a {type(self.get_base_layer()).__name__}, and {obstacle}. Run the model with the adapter unmerged, "
            "or merge it into the unquantised model and quantise that"
        )

    @property
    def weight_dtype(self) -> torch.dtype:
        return self.quantised.dtype

    def base_weight(self) -> Tensor:
        return self.quantised.dequantise()

    def set_base_weight(self, weight: Tensor) -> None:
        warnings.warn(
            f"{self.method}: merging into a quantised layer quantises its weight again, which rounds: outputs differ "
            "from the unmerged adapter's by about as much as the quantised model's from the original",
            stacklevel=2,
        )
        self.restore_weight(self.quantised.quantise(weight))

    def stored_weight(self) -> Tensor:
        return self.quantised.take()

    def restore_weight(self, stored: Any) -> None:
        self.quantised.put(stored)

    def weight_tensors(self) -> list[Tensor]:
        return self.quantised.tensors()
