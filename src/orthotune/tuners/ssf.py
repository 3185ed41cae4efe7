"""SSF: a scale and a shift on the output of every layer (Lian et al., NeurIPS 2022, arXiv 2210.08823)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.affine import AffineLayer, warn_of_layers_without_shift
from orthotune.tuners.combining import Combination, Linear
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.hosts import Conv2dHost, LinearHost, NormHost
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.model import AdapterModel


@dataclass
class SSFConfig(AdapterConfig):
    """Configuration of SSF: y * g + s after linear layers, convolutions and norms.

    A layer of n outputs (channels) has ``ssf_scale`` (n,), ones at the start, and ``ssf_shift`` (n,), zeros. A layer
    without a bias gets no shift: it could not be merged. Raises InputError, a ValueError, for a value out of range.
    """

    shift: bool = field(default=True, metadata={"help": "Learn a shift too."})
    init_weights: bool = field(default=True, metadata={"help": "True: start as a no-op. False: a random start."})

    def __post_init__(self) -> None:
        self.peft_type = peft_type("SSF")
        super().__post_init__()
        self.check_choice("init_weights", (True, False))


class SSFLayer(AffineLayer):
    """A scale and a shift of a layer's output."""

    method = "ssf"
    adapter_layer_names: tuple[str, ...] = ("ssf_scale", "ssf_shift")
    combinations: ClassVar[dict[str, Combination]] = {"linear": Linear(either=("shift",))}

    def neutral(self, name: str, adapter: str) -> float:
        return 1.0 if name == "ssf_scale" else 0.0

    def create_parameters(self, adapter_name: str, config: SSFConfig) -> None:
        scale = torch.ones(self.out_features)
        if not config.init_weights:
            scale = scale + 0.2 * torch.randn_like(scale)
        self.ssf_scale[adapter_name] = nn.Parameter(scale)
        if config.shift:
            self.create_shift(adapter_name, random=not config.init_weights)

    def gain(self, adapter: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.parameter("ssf_scale", adapter, dtype)


class SSFLinear(SSFLayer, LinearHost):
    """On the outputs of a linear layer."""


class SSFConv2d(SSFLayer, Conv2dHost):
    """On the output channels of a convolution."""


class SSFNorm(SSFLayer, NormHost):
    """On the channels of a normalisation."""


class SSFModel(AdapterModel):
    """Puts SSF adapters on a model."""

    prefix: str = "ssf_"
    tuner_layer_cls = SSFLayer
    layer_classes: ClassVar[dict[type[AdapterLayer], type[AdapterLayer]]] = {
        LinearHost: SSFLinear,
        Conv2dHost: SSFConv2d,
        NormHost: SSFNorm,
    }

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """See PEFT; warns once about the layers whose shift is left out."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if self.peft_config[adapter_name].shift:
            warn_of_layers_without_shift(model, adapter_name)


register("ssf", SSFConfig, SSFModel)
