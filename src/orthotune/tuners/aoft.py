"""AOFT in the LoRA host as a PEFT tuner; the maths is in :mod:`orthotune.ops.approx_orthogonal`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from orthotune.ops import approx_orthogonal
from orthotune.ops.precision import layer_dtype
from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.hosts import Conv2dHost, LinearHost
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.model import AdapterModel


@dataclass
class AOFTConfig(AdapterConfig):
    """Configuration of AOFT: W* = W + AO(q_down) diag(l) AO(q_up)^T (Yang et al., ICCV 2025, arXiv 2507.13260).

    With D = in_features and n = out_features of a layer, an adapter has ``aoft_down`` (D,), ``aoft_up`` (n,) and, with
    ``learn_scale``, ``aoft_scale`` (r,), zeros at the start. Without it l = 1 is fixed, and the product at the
    starting vectors, kept with the adapter as ``aoft_down_init`` and ``aoft_up_init``, is subtracted so that the start
    is a no-op too. The number of parameters does not grow with the bottleneck r, but for l.

    A convolution's kernels are laid flat: D = in_channels * kh * kw. Raises InputError, a ValueError, for a value out
    of range.
    """

    r: int = field(default=8, metadata={"help": "Bottleneck: the number of columns d of each projection."})
    learn_scale: bool = field(default=True, metadata={"help": "Learn the scale l between the projections."})
    init_weights: bool | Literal["paper"] = field(
        default=True,
        metadata={"help": "True: start as a no-op. False: a random start. 'paper': l = 1 and nothing subtracted."},
    )

    def __post_init__(self) -> None:
        self.peft_type = peft_type("AOFT")
        super().__post_init__()
        self.check_positive("r")
        self.check_choice("init_weights", (True, False, "paper"))

    @property
    def subtracts_start(self) -> bool:
        """Whether the product at the starting vectors is subtracted."""
        return self.init_weights != "paper" and not self.learn_scale


class AOFTLayer(AdapterLayer):
    """A low-rank update whose projections are each generated from one vector."""

    method = "aoft"
    adapter_layer_names: tuple[str, ...] = ("aoft_down", "aoft_up", "aoft_scale")
    other_param_names: tuple[str, ...] = ("adapter_options", "aoft_down_init", "aoft_up_init")

    def __init__(self, base_layer: nn.Module, module_name: str) -> None:
        super().__init__(base_layer, module_name)
        self.aoft_down_init = BufferDict({}, persistent=True)
        self.aoft_up_init = BufferDict({}, persistent=True)

    @classmethod
    def check(cls, config: AOFTConfig, module_name: str, in_features: int, out_features: int) -> None:
        config.check_rank(module_name, in_features, out_features)

    def create_parameters(self, adapter_name: str, config: AOFTConfig) -> None:
        down = approx_orthogonal.random_unit(self.in_features)
        up = approx_orthogonal.random_unit(self.out_features)
        if config.subtracts_start:
            self.aoft_down_init[adapter_name] = down.clone()
            self.aoft_up_init[adapter_name] = up.clone()
            if config.init_weights is False:
                down, up = map(approx_orthogonal.random_unit, (self.in_features, self.out_features))
        self.aoft_down[adapter_name] = nn.Parameter(down)
        self.aoft_up[adapter_name] = nn.Parameter(up)
        if config.learn_scale:
            starts = {
                True: torch.zeros(config.r),
                False: torch.randn(config.r),
                "paper": torch.ones(config.r),
            }
            self.aoft_scale[adapter_name] = nn.Parameter(starts[config.init_weights])

    def terms(self, adapter: str, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return (q_down, q_up, l) of each term of the update: one, or two where the start is subtracted."""
        config = self.adapter_options[adapter]
        down, up = self.parameter("aoft_down", adapter, dtype), self.parameter("aoft_up", adapter, dtype)
        if config.learn_scale:
            return [(down, up, self.parameter("aoft_scale", adapter, dtype))]
        ones = down.new_ones(config.r)
        terms = [(down, up, ones)]
        if config.subtracts_start:
            start_down = self.parameter("aoft_down_init", adapter, dtype)
            start_up = self.parameter("aoft_up_init", adapter, dtype)
            terms.append((start_down, start_up, -ones))
        return terms

    def adapt_matrix(self, matrix: Tensor, adapter: str) -> Tensor:
        for term in self.terms(adapter, matrix.dtype):
            matrix = matrix + approx_orthogonal.update(*term)
        return matrix

    def defect(self, adapter: str) -> float:
        """Return max |P^T P - I| over the two projections."""
        rank = self.adapter_options[adapter].r
        vectors = (self.parameter(name, adapter) for name in ("aoft_down", "aoft_up"))
        return max(approx_orthogonal.defect(q, rank) for q in vectors)


class AOFTLinear(AOFTLayer, LinearHost):
    """Adds the update to the base layer's output, O(D + n) a vector; or to the weight, where that is less work."""

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        z = x.to(layer_dtype(x))
        terms = [term for adapter in adapters for term in self.terms(adapter, z.dtype)]
        if self.is_fusable(z):
            base = self.get_base_layer()
            y = approx_orthogonal.linear_with_update(z, self.to_matrix(base.weight), base.bias, *terms.pop(0))
        else:
            y = self.base_layer(x, *args, **kwargs)
        for term in terms:
            y = approx_orthogonal.add_update(y, z, *term)
        return y


class AOFTConv2d(AOFTLayer, Conv2dHost):
    """Adds the update to the kernels laid flat, on the weight side."""


class AOFTModel(AdapterModel):
    """Puts AOFT adapters on a model.

    Args:
        model: the model to adapt.
        config: an :class:`AOFTConfig`.
        adapter_name: name of the adapter.
        low_cpu_mem_usage: make empty adapter weights on the meta device.
    """

    prefix: str = "aoft_"
    tuner_layer_cls = AOFTLayer
    layer_classes: ClassVar[dict[type[AdapterLayer], type[AdapterLayer]]] = {
        LinearHost: AOFTLinear,
        Conv2dHost: AOFTConv2d,
    }


register("aoft", AOFTConfig, AOFTModel)
