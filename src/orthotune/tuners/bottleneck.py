"""Bottleneck adapters after a sublayer (Houlsby et al., ICML 2019; Pfeiffer et al., EACL 2021), dense or AOFT's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthotune.ops import approx_orthogonal
from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.hosts import LinearHost
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.model import AdapterModel

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "none": lambda z: z,
}


@dataclass
class BottleneckConfig(AdapterConfig):
    """Configuration of bottleneck adapters: h + act(h P_down + b_down) P_up + b_up on the output h of a layer.

    The targets are the last linear layers of the sublayers: those of attention and FFN in Houlsby's placement, of the
    FFN alone in Pfeiffer's. With n = out_features an adapter has

    * ``projection="dense"``: ``bottleneck_down`` (r, n), ``bottleneck_down_bias`` (r,), ``bottleneck_up`` (n, r), zeros
      at the start, and ``bottleneck_up_bias`` (n,);
    * ``projection="approx_orthogonal"`` (Yang et al., ICCV 2025, arXiv 2507.13260): h + act(h AO(q_down) diag(l))
      AO(q_up)^T + b, with ``bottleneck_down`` q_down (n,), ``bottleneck_up`` q_up (n,), ``bottleneck_scale`` l (r,),
      zeros at the start, and ``bottleneck_up_bias`` (n,). Without ``learn_scale`` l = 1 and the start is no no-op.
      With ReLU, which has no gradient at zero, l starts at 1e-3, which is one only nearly.

    With ``activation="none"`` the adapter merges into the layer, otherwise it cannot. Raises InputError, a ValueError,
    for a value out of range.
    """

    r: int = field(default=8, metadata={"help": "Bottleneck width."})
    activation: Literal["relu", "gelu", "silu", "none"] = field(
        default="relu", metadata={"help": "Nonlinearity; 'none' makes the adapter mergeable."}
    )
    projection: Literal["dense", "approx_orthogonal"] = field(
        default="dense", metadata={"help": "Dense projections, or AOFT's, generated from one vector each."}
    )
    learn_scale: bool = field(default=True, metadata={"help": "Learn the scale l of approx_orthogonal projections."})
    shift: bool = field(default=True, metadata={"help": "Learn the biases of the projections."})
    init_weights: bool = field(default=True, metadata={"help": "True: start as a no-op. False: a random start."})

    def __post_init__(self) -> None:
        self.peft_type = peft_type("BOTTLENECK")
        super().__post_init__()
        self.check_positive("r")
        self.check_choice("activation", tuple(ACTIVATIONS))
        self.check_choice("projection", ("dense", "approx_orthogonal"))
        self.check_choice("init_weights", (True, False))

    @property
    def starts_as_no_op(self) -> bool:
        return self.init_weights and (self.projection == "dense" or (self.learn_scale and self.activation != "relu"))


class BottleneckLinear(LinearHost):
    """A bottleneck on a linear layer's output."""

    method = "bottleneck"
    adapter_layer_names: tuple[str, ...] = (
        "bottleneck_down",
        "bottleneck_down_bias",
        "bottleneck_up",
        "bottleneck_up_bias",
        "bottleneck_scale",
    )

    @classmethod
    def check(cls, config: BottleneckConfig, module_name: str, in_features: int, out_features: int) -> None:
        if config.projection == "approx_orthogonal":
            config.check_rank(module_name, out_features, out_features)

    def create_parameters(self, adapter_name: str, config: BottleneckConfig) -> None:
        rank, width, random = config.r, self.out_features, not config.init_weights

        def start(size: int) -> nn.Parameter:
            return nn.Parameter(0.2 * torch.randn(size) if random else torch.zeros(size))

        if config.projection == "dense":
            down, up = torch.empty(rank, width), torch.zeros(width, rank)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            if random:
                nn.init.kaiming_uniform_(up, a=math.sqrt(5))
            if config.shift:
                self.bottleneck_down_bias[adapter_name] = start(rank)
        else:
            down, up = approx_orthogonal.random_unit(width), approx_orthogonal.random_unit(width)
            if config.learn_scale:
                scale = (
                    1 + torch.rand(rank) if random else torch.full((rank,), float(config.activation == "relu") * 1e-3)
                )
                self.bottleneck_scale[adapter_name] = nn.Parameter(scale)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = nn.Parameter(down), nn.Parameter(up)
        if config.shift:
            self.bottleneck_up_bias[adapter_name] = start(width)

    def change(self, h: Tensor, adapter: str, biased: bool = True) -> Tensor:
        """Return act(h P_down + b_down) P_up + b_up for h (..., n), without the biases if not ``biased``."""
        config = self.adapter_options[adapter]
        dtype = h.dtype if h.dtype == torch.float64 else None
        down, up = (self.parameter(f"bottleneck_{name}", adapter, dtype) for name in ("down", "up"))
        h = h.to(down.dtype)
        if config.projection == "dense":
            z = h @ down.T
        else:
            z = approx_orthogonal.project(h, down, config.r)
            if config.learn_scale:
                z = z * self.parameter("bottleneck_scale", adapter, dtype)
        if biased and adapter in self.bottleneck_down_bias:
            z = z + self.parameter("bottleneck_down_bias", adapter, dtype)
        z = ACTIVATIONS[config.activation](z)
        y = z @ up.T if config.projection == "dense" else approx_orthogonal.expand(z, up)
        if biased and adapter in self.bottleneck_up_bias:
            y = y + self.parameter("bottleneck_up_bias", adapter, dtype)
        return y

    def merge_obstacle(self, adapter: str) -> str | None:
        config = self.adapter_options[adapter]
        if config.activation != "none":
            return f"activation={config.activation!r} is not linear; only activation='none' has a merged form"
        if config.shift and self.get_base_layer().bias is None:
            return "the layer has no bias for the adapter's; use shift=False"
        return None

    def adapt_matrix(self, matrix: Tensor, adapter: str) -> Tensor:
        return matrix + self.change(matrix.T, adapter, biased=False).T

    def adapt_bias(self, bias: Tensor | None, adapter: str) -> Tensor | None:
        return None if bias is None else bias + self.change(bias, adapter)

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        for adapter in adapters:
            y = y + self.change(y, adapter).to(y.dtype)
        return y


class BottleneckModel(AdapterModel):
    """Puts bottleneck adapters on a model."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLinear
    layer_classes: ClassVar[dict[type[AdapterLayer], type[AdapterLayer]]] = {LinearHost: BottleneckLinear}


register("bottleneck", BottleneckConfig, BottleneckModel)
