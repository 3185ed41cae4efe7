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
from orthotune.tuners.combining import Combination
from orthotune.tuners.combining.aoft import Concatenate
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.hosts import Conv2dHost, LinearHost
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.model import AdapterModel
from orthotune.tuners.quantised import QuantisedHost


@dataclass
class AOFTConfig(AdapterConfig):
    """Configuration of AOFT: W* = W + AO(q_down) diag(l) AO(q_up)^T (Yang et al., ICCV 2025, arXiv 2507.13260).

    With D = in_features and n = out_features of a layer, an adapter has ``aoft_down`` (D,), ``aoft_up`` (n,) and, with
    ``learn_scale``, ``aoft_scale`` (r,), zeros at the start. Without it l = 1 is fixed, and the product at the
    starting vectors, kept with the adapter as ``aoft_down_init`` and ``aoft_up_init``, is subtracted so that the start
    is a no-op too. The number of parameters does not grow with the bottleneck r, but for l.

    With ``num_updates`` k above 1 the change of W is a sum of k such products, each of its own vectors, which are
    stacked: (k, D), (k, n), (k, r).

    A convolution's kernels are laid flat: D = in_channels * kh * kw. Raises InputError, a ValueError, for a value out
    of range.
    """

    r: int = field(default=8, metadata={"help": "Bottleneck: the number of columns d of each projection."})
    learn_scale: bool = field(default=True, metadata={"help": "Learn the scale l between the projections."})
    num_updates: int = field(
        default=1,
        metadata={"help": "Number of updates added up, each of rank r; 1: the paper. Combinations have more."},
    )
    init_weights: bool | Literal["paper"] = field(
        default=True,
        metadata={"help": "True: start as a no-op. False: a random start. 'paper': l = 1 and nothing subtracted."},
    )

    def __post_init__(self) -> None:
        self.peft_type = peft_type("AOFT")
        super().__post_init__()
        self.check_positive("r")
        self.check_positive("num_updates")
        self.check_choice("init_weights", (True, False, "paper"))

    @property
    def subtracts_start(self) -> bool:
        """Whether the product at the starting vectors is subtracted."""
        return self.init_weights != "paper" and not self.learn_scale

    @property
    def num_terms(self) -> int:
        """Products of projections in the change of W: the updates, and their starts where these are subtracted."""
        return self.num_updates * (2 if self.subtracts_start else 1)


class AOFTLayer(AdapterLayer):
    """A low-rank update whose projections are each generated from one vector."""

    method = "aoft"
    combinations: ClassVar[dict[str, Combination]] = {"cat": Concatenate()}
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
        count = config.num_updates
        down, up = _random_units(count, self.in_features), _random_units(count, self.out_features)
        if config.subtracts_start:
            self.aoft_down_init[adapter_name] = down.clone()
            self.aoft_up_init[adapter_name] = up.clone()
            if config.init_weights is False:
                down, up = _random_units(count, self.in_features), _random_units(count, self.out_features)
        self.aoft_down[adapter_name] = nn.Parameter(down)
        self.aoft_up[adapter_name] = nn.Parameter(up)
        if config.learn_scale:
            shape = (config.r,) if count == 1 else (count, config.r)
            starts = {True: torch.zeros(shape), False: torch.randn(shape), "paper": torch.ones(shape)}
            self.aoft_scale[adapter_name] = nn.Parameter(starts[config.init_weights])

    def terms(self, adapter: str, dtype: torch.dtype | None = None) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return (q_down, q_up, l) of each term of the change of W, in order; see :attr:`AOFTConfig.num_terms`."""
        config = self.adapter_options[adapter]
        down, up = self._vectors("aoft_down", adapter, dtype), self._vectors("aoft_up", adapter, dtype)
        if config.learn_scale:
            return list(zip(down, up, self._vectors("aoft_scale", adapter, dtype), strict=True))
        ones = down[0].new_ones(config.r)
        terms = [(q_down, q_up, ones) for q_down, q_up in zip(down, up, strict=True)]
        if config.subtracts_start:
            start_down = self._vectors("aoft_down_init", adapter, dtype)
            start_up = self._vectors("aoft_up_init", adapter, dtype)
            terms += [(q_down, q_up, -ones) for q_down, q_up in zip(start_down, start_up, strict=True)]
        return terms

    def _vectors(self, name: str, adapter: str, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        value = self.parameter(name, adapter, dtype)
        return (value,) if value.ndim == 1 else value.unbind()

    def adapt_matrix(self, matrix: Tensor, adapter: str) -> Tensor:
        for term in self.terms(adapter, matrix.dtype):
            matrix = matrix + approx_orthogonal.update(*term)
        return matrix

    def low_rank_change(self, adapter: str) -> tuple[Tensor, Tensor]:
        rank = self.adapter_options[adapter].r
        terms = self.terms(adapter, torch.float64)
        a = [scale[:, None] * approx_orthogonal.dense(down, rank).T for down, _, scale in terms]
        b = [approx_orthogonal.dense(up, rank) for _, up, _ in terms]
        return torch.cat(a), torch.cat(b, dim=1)

    def defect(self, adapter: str) -> float:
        """Return max |P^T P - I| over the projections."""
        rank = self.adapter_options[adapter].r
        vectors = (q for name in ("aoft_down", "aoft_up") for q in self._vectors(name, adapter))
        return max(approx_orthogonal.defect(q, rank) for q in vectors)


def _random_units(count: int, width: int) -> Tensor:
    """Draw starts for one vector q, (width,), or for several, (count, width)."""
    units = torch.stack([approx_orthogonal.random_unit(width) for _ in range(count)])
    return units[0] if count == 1 else units


class AOFTLinear(AOFTLayer, LinearHost):
    """Adds the update to the base layer's output, O(D + n) a vector; or to the weight, where that is less work."""

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        z = x.to(layer_dtype(x))
        terms = [term for adapter in adapters for term in self.terms(adapter, z.dtype)]
        if self.is_fusable(z):
            base = self.get_base_layer()
            y = approx_orthogonal.linear_with_update(z, self.to_matrix(base.weight), base.bias, *terms.pop(0))
        else:
            y = self.run_base(x, *args, **kwargs)
        for term in terms:
            y = approx_orthogonal.add_update(y, z, *term)
        return y


class AOFTQuantisedLinear(QuantisedHost, AOFTLinear):
    """Adds the update to the layer's output."""


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
        QuantisedHost: AOFTQuantisedLinear,
        Conv2dHost: AOFTConv2d,
    }


register("aoft", AOFTConfig, AOFTModel)
