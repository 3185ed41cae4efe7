"""ARC: a symmetric low-rank map before a layer, its projection shared by all layers (Dong et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.fused import ATTENTION_INPUTS
from orthotune.tuners.hosts import LinearHost
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.model import AdapterModel


@dataclass
class ARCConfig(AdapterConfig):
    """Configuration of ARC: h + h A diag(c) A^T + b before attention and FFN (arXiv 2310.06234).

    W* = (I + A diag(c) A^T) W and the layer's bias gains b W. ``arc_projection`` A (D, r) is one for all layers of a
    width that take the attention's input, and one for all others; ``arc_coefficient`` c (r,) and ``arc_shift`` b (D,)
    are a layer's own, one for the queries, keys and values of a block together. A layer without a bias gets no shift,
    which could not be merged. Raises InputError, a ValueError, for a value out of range.
    """

    r: int = field(default=50, metadata={"help": "Width of the shared projection; 50 in the paper for ViT-B."})
    shift: bool = field(default=True, metadata={"help": "Learn a shift of the layer's input."})
    init_weights: bool = field(default=True, metadata={"help": "True: start as a no-op. False: a random start."})

    def __post_init__(self) -> None:
        self.peft_type = peft_type("ARC")
        super().__post_init__()
        self.check_positive("r")
        self.check_choice("init_weights", (True, False))


class ARCLinear(LinearHost):
    """A symmetric low-rank map of a linear layer's input."""

    method = "arc"
    adapter_layer_names: tuple[str, ...] = ("arc_projection", "arc_coefficient", "arc_shift")

    def create_parameters(self, adapter_name: str, config: ARCConfig) -> None:
        parent, _, last = self.module_name.rpartition(".")
        before_attention = last in ATTENTION_INPUTS
        own: Hashable = parent if before_attention else self.module_name
        random, width = not config.init_weights, self.in_features

        def projection() -> Tensor:
            return nn.init.xavier_uniform_(torch.empty(width, config.r))

        def start(size: int) -> Tensor:
            return torch.randn(size) if random else torch.zeros(size)

        self.share("arc_projection", adapter_name, (before_attention, width), projection)
        self.share("arc_coefficient", adapter_name, own, lambda: start(config.r))
        if config.shift and self.get_base_layer().bias is not None:
            self.share("arc_shift", adapter_name, own, lambda: start(width))

    def has_shift(self, adapter: str) -> bool:
        """Whether the adapter shifts this layer's input."""
        return ("arc_shift", adapter) in self._holders

    def adapt(self, matrix: Tensor, bias: Tensor | None, adapter: str) -> tuple[Tensor, Tensor | None]:
        if bias is not None and self.has_shift(adapter):
            bias = bias + matrix @ self.parameter("arc_shift", adapter, matrix.dtype)
        return matrix + self._mapped(matrix, adapter, matrix.dtype), bias

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """See PEFT: a shift of the input would change the bias."""
        return super().supports_lora_conversion(adapter_name) and not self.has_shift(adapter_name)

    def _mapped(self, x: Tensor, adapter: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return x A diag(c) A^T, (..., D)."""
        projection = self.parameter("arc_projection", adapter, dtype)
        return (x.to(projection.dtype) @ projection * self.parameter("arc_coefficient", adapter, dtype)) @ projection.T

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        for adapter in reversed(adapters):
            change = self._mapped(x, adapter)
            if self.has_shift(adapter):
                change = change + self.parameter("arc_shift", adapter)
            x = x + change.to(x.dtype)
        return self.base_layer(x, *args, **kwargs)


class ARCModel(AdapterModel):
    """Puts ARC adapters on a model."""

    prefix: str = "arc_"
    tuner_layer_cls = ARCLinear
    layer_classes: ClassVar[dict[type[AdapterLayer], type[AdapterLayer]]] = {LinearHost: ARCLinear}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """See PEFT; the configuration says which layers: a state dict names none whose parameters others hold."""
        kwargs.pop("state_dict", None)
        super().inject_adapter(model, adapter_name, *args, **kwargs)


register("arc", ARCConfig, ARCModel)
