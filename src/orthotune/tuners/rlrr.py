"""RLRR as a PEFT tuner; the maths is in :mod:`orthotune.ops.rescaling`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.ops import rescaling
from orthotune.ops.precision import layer_dtype
from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.affine import AffineLayer, ShiftLayer, warn_of_layers_without_shift
from orthotune.tuners.combining import Combination, Linear
from orthotune.tuners.combining.rlrr import Concatenate
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.hosts import Conv2dHost, LinearHost, NormHost
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.model import AdapterModel
from orthotune.tuners.quantised import QuantisedHost
from orthotune.tuners.sharding import shape_of

STARTS = ("paper", "normal", "uniform", "constant", "zero")


@dataclass
class RLRRConfig(AdapterConfig):
    """Configuration of RLRR: W* = W + (S_left S_right) (.) W, b* = b + f (Dong et al., CVPR 2024, arXiv 2403.19067).

    With D = in_features and n = out_features of a layer, an adapter has ``rlrr_left`` (D, r), ``rlrr_right`` (r, n) and
    ``rlrr_shift`` (n,). A side that is switched off is a row or column of ones. A norm layer has y * s + f, with s in
    ``rlrr_right`` (1, n), ones at the start. A convolution's kernel (out, in, kh, kw) is laid out as the matrix
    (out * kh, in * kw), so D = in * kw and n = out * kh, but f has one number per output channel.

    A layer without a bias gets no shift: it could not be merged into the layer. A warning names such layers.
    Raises InputError, a ValueError, for a value out of range.
    """

    r: int = field(default=1, metadata={"help": "Rank of the rescaling; 1 in the paper's main results."})
    left: bool = field(default=True, metadata={"help": "Rescale the input side, S_left."})
    right: bool = field(default=True, metadata={"help": "Rescale the output side, S_right."})
    residual: bool = field(
        default=True, metadata={"help": "Keep the weight as a residual; off: W* = (S_left S_right) (.) W."}
    )
    multiply_base: bool = field(
        default=True, metadata={"help": "Multiply the weight; off: W* = W + S_left S_right, 'without W'."}
    )
    shift: bool = field(default=True, metadata={"help": "Learn a shift of the bias."})
    init_weights: bool | Literal["paper", "normal", "uniform", "constant", "zero"] = field(
        default=True,
        metadata={
            "help": "True: start as a no-op. False: random. Or a start of the paper's table 10: 'paper' (Kaiming "
            "uniform on both factors), 'normal', 'uniform', 'constant', 'zero'."
        },
    )

    def __post_init__(self) -> None:
        self.peft_type = peft_type("RLRR")
        super().__post_init__()
        self.check_positive("r")
        self.check_choice("init_weights", (True, False, *STARTS))
        if not (self.left or self.right):
            raise InputError("left=False and right=False leave nothing to rescale: switch on at least one side")
        if self.r > 1 and not (self.left and self.right):
            raise InputError(f"r={self.r} is out of range: a one-sided rescaling has r=1; switch on both sides")
        if not (self.residual or self.multiply_base):
            raise InputError(
                "residual=False and multiply_base=False would throw the pre-trained weight away: switch on at least one"
            )


class RLRRLayer(ShiftLayer):
    """Low-rank rescaling of a layer's weight, and a shift of its bias."""

    method = "rlrr"
    combinations: ClassVar[dict[str, Combination]] = {
        "linear": Linear(must_agree=("r", "left", "right", "residual", "multiply_base"), either=("shift",)),
        "cat": Concatenate(must_agree=("residual", "multiply_base"), either=("shift",)),
    }
    adapter_layer_names: tuple[str, ...] = ("rlrr_left", "rlrr_right", "rlrr_shift")

    @classmethod
    def check(cls, config: RLRRConfig, module_name: str, in_features: int, out_features: int) -> None:
        config.check_rank(module_name, in_features, out_features)

    def create_parameters(self, adapter_name: str, config: RLRRConfig) -> None:
        left, right = _start(config, self.in_features, self.out_features)
        if left is not None:
            self.rlrr_left[adapter_name] = nn.Parameter(left)
        if right is not None:
            self.rlrr_right[adapter_name] = nn.Parameter(right)
        if config.shift:
            self.create_shift(adapter_name, config.init_weights is False)

    def neutral(self, name: str, adapter: str) -> Tensor | float:
        if name == "rlrr_shift" or self.adapter_options[adapter].residual:
            return 0.0
        value = torch.zeros_like(getattr(self, name)[adapter])
        (value.T if name == "rlrr_left" else value)[0] = 1
        return value

    def factors(self, adapter: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return S_left (D, r) and S_right (r, n), ones for a side that is off."""
        left = self.parameter("rlrr_left", adapter, dtype) if adapter in self.rlrr_left else None
        right = self.parameter("rlrr_right", adapter, dtype) if adapter in self.rlrr_right else None
        if left is None:
            assert right is not None
            left = right.new_ones(self.in_features, 1)
        if right is None:
            right = left.new_ones(1, self.out_features)
        return left, right

    def adapt_matrix(self, matrix: Tensor, adapter: str) -> Tensor:
        config = self.adapter_options[adapter]
        left, right = self.factors(adapter, matrix.dtype)
        if not config.multiply_base:
            return matrix + right.T @ left.T
        return rescaling.rescale_weight(matrix, left, right, config.residual)


class RLRRLinear(RLRRLayer, LinearHost):
    """One product with W*, which the backward rebuilds; over another method's adapter, r products with rescaled x."""

    def low_rank_change(self, adapter: str) -> tuple[Tensor, Tensor] | None:
        if self.adapter_options[adapter].multiply_base:
            return None
        left, right = self.factors(adapter, torch.float64)
        return left.T, right.T

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if not self.is_plain:
            return self._activation_side(x, adapters)
        dtype = layer_dtype(x)
        x = x.to(dtype)
        base = self.get_base_layer()
        weight = self.to_matrix(base.weight)
        bias = base.bias
        for adapter in adapters:
            bias = self.adapt_bias(bias, adapter)
        bias = None if bias is None else bias.to(dtype)
        *before, last = adapters
        config = self.adapter_options[last]
        if before or not config.multiply_base or base.weight.requires_grad:
            weight, _ = self.adapted_weight(adapters)
            return nn.functional.linear(x, self.to_matrix(weight).to(dtype), bias)
        left, right = self.factors(last, weight.dtype)
        return rescaling.rescaled_linear(x, weight, bias, left, right, config.residual)

    def _activation_side(self, x: Tensor, adapters: list[str]) -> Tensor:
        """Return x W* + b* from calls of the base layer alone."""
        y = self._product(x.to(layer_dtype(x)), adapters)
        bias = self.get_base_layer().bias
        for adapter in adapters:
            bias = self.adapt_bias(bias, adapter)
        return y if bias is None else y + bias.to(y.dtype)

    def _product(self, x: Tensor, adapters: list[str]) -> Tensor:
        """Return x W*: with S = left right, x (S (.) W) = sum_k ((x (.) left_k) W) (.) right_k."""
        if not adapters:
            return self.base_linear(x)
        *before, last = adapters
        config = self.adapter_options[last]
        left, right = (factor.to(x.dtype) for factor in self.factors(last, x.dtype))
        if config.multiply_base:
            y = sum(
                (self._product(x * column, before) * row for column, row in zip(left.T, right, strict=True)),
                start=x.new_zeros(()),
            )
        else:
            y = x @ left @ right
        return y + self._product(x, before) if config.residual else y


class RLRRQuantisedLinear(QuantisedHost, RLRRLinear):
    """Calls the layer on rescaled activations: r times, and once more for the residual."""


class RLRRConv2d(RLRRLayer, Conv2dHost):
    """The kernel (out, in, kh, kw) is the matrix (out * kh, in * kw)."""

    @classmethod
    def matrix_shape(cls, base_layer: Any) -> tuple[int, int]:
        out, channels, height, width = shape_of(base_layer.weight)
        return channels * width, out * height

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.permute(0, 2, 1, 3).reshape(self.out_features, self.in_features)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        out, channels, height, width = self.get_base_layer().weight.shape
        return matrix.reshape(out, height, channels, width).permute(0, 2, 1, 3)


class RLRRNorm(AffineLayer, RLRRLayer, NormHost):
    """y * s + f on a norm's output; s is ``rlrr_right`` (1, n), f ``rlrr_shift`` (n,)."""

    # both are linear in s and f, so adding up the parameters adds up the changes of the weight
    combinations: ClassVar[dict[str, Combination]] = dict.fromkeys(("linear", "cat"), Linear())

    def neutral(self, name: str, adapter: str) -> float:
        return 1.0 if name == "rlrr_right" else 0.0

    @classmethod
    def check(cls, config: RLRRConfig, module_name: str, in_features: int, out_features: int) -> None:
        """Any rank goes with a norm, whose scale is a vector."""

    def create_parameters(self, adapter_name: str, config: RLRRConfig) -> None:
        scale = torch.ones(1, self.out_features)
        if config.init_weights is False:
            scale = scale + 0.2 * torch.randn_like(scale)
        self.rlrr_right[adapter_name] = nn.Parameter(scale)
        if config.shift:
            self.create_shift(adapter_name, config.init_weights is False)

    def gain(self, adapter: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.parameter("rlrr_right", adapter, dtype)[0]


class RLRRModel(AdapterModel):
    """Puts RLRR adapters on a model.

    Args:
        model: the model to adapt.
        config: an :class:`RLRRConfig`.
        adapter_name: name of the adapter.
        low_cpu_mem_usage: make empty adapter weights on the meta device.
    """

    prefix: str = "rlrr_"
    tuner_layer_cls = RLRRLayer
    layer_classes: ClassVar[dict[type[AdapterLayer], type[AdapterLayer]]] = {
        LinearHost: RLRRLinear,
        QuantisedHost: RLRRQuantisedLinear,
        Conv2dHost: RLRRConv2d,
        NormHost: RLRRNorm,
    }

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """See PEFT; warns once about the layers whose shift is left out."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if self.peft_config[adapter_name].shift:
            warn_of_layers_without_shift(model, adapter_name)


def _start(config: RLRRConfig, in_features: int, out_features: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the starting S_left (D, r) and S_right (r, n), None for a side that is off.

    Fan-in of the left factor is D, that of the right one is 1, as in the authors' code.
    """
    bound_left = math.sqrt(6 / (1 + 5) / in_features)  # Kaiming uniform with a = sqrt(5): sqrt(6 / ((1 + a^2) fan_in))
    left, right = torch.empty(in_features, config.r), torch.empty(config.r, out_features)
    match config.init_weights:
        case "paper":
            left.uniform_(-bound_left, bound_left)
            right.uniform_(-1, 1)
        case "normal":
            left.normal_(std=0.02)
            right.normal_(std=0.02)
        case "uniform":
            left.uniform_(-0.02, 0.02)
            right.uniform_(-0.02, 0.02)
        case "constant":
            left.fill_(0.01)
            right.fill_(0.01)
        case "zero":
            left.zero_()
            right.zero_()
        case False:
            left.normal_(std=0.5)
            right.normal_(std=0.5)
        case True if not (config.left and config.right):
            left.zero_()
            right.zero_()
        case True:
            left.uniform_(-bound_left, bound_left)
            right.zero_()
    if not config.residual:
        # the product itself is the gain, so the no-op is a product of ones; the further ranks start as above
        left[:, 0], right[0] = (1.0, 1.0) if config.init_weights is True else (left[:, 0] + 1, right[0] + 1)
    return left if config.left else None, right if config.right else None


register("rlrr", RLRRConfig, RLRRModel)
