"""The quantised layers that the tests run on, each with its dense weight as its own library gives it."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune import AOFTConfig, GOFTConfig, RLRRConfig

# not powers of two; rows of whole blocks of 64, or bitsandbytes (0.50, on a CPU) dequantises 4-bit weights wrongly
IN, OUT = 192, 40

#: one configuration of each way to compute
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "goft": (GOFTConfig, {}),
    "goft-output-scale": (GOFTConfig, {"scale": "output"}),
    "goft-input-scale": (GOFTConfig, {"scale": "input"}),
    "goft-3-trees": (GOFTConfig, {"num_trees": 3}),
    "qgoft": (GOFTConfig, {"quasi": True}),
    "qgoft-output-scale": (GOFTConfig, {"quasi": True, "scale": "output"}),
    "rlrr": (RLRRConfig, {}),
    "rlrr-r3": (RLRRConfig, {"r": 3}),
    "rlrr-left": (RLRRConfig, {"right": False}),
    "rlrr-no-residual": (RLRRConfig, {"residual": False, "r": 2}),
    "rlrr-without-w": (RLRRConfig, {"multiply_base": False, "r": 2}),
    "rlrr-no-shift": (RLRRConfig, {"shift": False}),
    "aoft": (AOFTConfig, {"r": 3}),
    "aoft-no-scale": (AOFTConfig, {"r": 3, "learn_scale": False}),
}


def config(name: str, **kwargs: Any) -> Any:
    """Make a fresh configuration of one of the cases."""
    cls, defaults = CONFIGS[name]
    return cls(**{**defaults, **kwargs})


logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # float32 inputs are cast on the way in, as it should be


class PackedLinear(nn.Module):
    """A linear layer as GPTQ stores it: eight 4-bit numbers to an int32 (D / 8, n), a scale and a zero every 32."""

    size_names = ("in_features", "out_features")

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        for name, size in zip(self.size_names, (linear.in_features, linear.out_features), strict=True):
            setattr(self, name, size)
        weight = linear.weight.detach().float().T  # (D, n), which is how the format has it
        groups = weight.unflatten(0, (-1, 32))
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        scale = (high - low) / 15
        digits = ((groups - low) / scale).round().clamp(0, 15).to(torch.int32).flatten(0, 1)
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)[None, :, None]
        self.register_buffer("qweight", (digits.unflatten(0, (-1, 8)) << shifts).sum(1, dtype=torch.int32))
        self.register_buffer("scales", scale)
        self.register_buffer("zeros", low)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def dense(self) -> Tensor:
        """The weight (n, D)."""
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=self.qweight.device)[None, :, None]
        digits = ((self.qweight[:, None] >> shifts) & 15).flatten(0, 1).float()
        return (digits.unflatten(0, (-1, 32)) * self.scales + self.zeros).flatten(0, 1).T

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class OldPackedLinear(PackedLinear):
    """The same with the older names of its sizes."""

    size_names = ("infeatures", "outfeatures")


class KernelLinear(PackedLinear):
    """The same with a kernel that has no backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def _bnb_8bit(linear: nn.Linear, **options: Any) -> nn.Module:
    import bitsandbytes as bnb

    options = {"has_fp16_weights": False, **options}
    layer = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None, **options)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def _bnb_4bit(linear: nn.Linear, **options: Any) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, linear.bias is not None, **options)
    layer.load_state_dict(linear.state_dict())
    return layer.to(linear.weight.dtype).to("cpu")


def _torchao(linear: nn.Linear, config: str, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing the library says of its own modules
        import torchao.quantization as ao

    holder = nn.Sequential(linear)
    ao.quantize_(holder, getattr(ao, config)(**options))
    return holder[0]


def _dense_8bit(layer: Any) -> Tensor:
    scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
    return layer.weight.data.float() * scales[:, None] / 127


def _dense_4bit(layer: Any) -> Tensor:
    import bitsandbytes as bnb

    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def _dequantize(layer: Any) -> Tensor:
    return layer.weight.dequantize()


Make = Callable[[nn.Linear], nn.Module]
#: name: how a linear layer is quantised, its dense weight by the library's own means, the library
KINDS: dict[str, tuple[Make, Callable[[Any], Tensor], str | None]] = {
    "bnb-8bit": (_bnb_8bit, _dense_8bit, "bitsandbytes"),
    "bnb-8bit-outliers": (lambda linear: _bnb_8bit(linear, threshold=6.0), _dense_8bit, "bitsandbytes"),
    "bnb-nf4": (lambda linear: _bnb_4bit(linear, quant_type="nf4"), _dense_4bit, "bitsandbytes"),
    "bnb-fp4-not-nested": (
        lambda linear: _bnb_4bit(linear, quant_type="fp4", compress_statistics=False),
        _dense_4bit,
        "bitsandbytes",
    ),
    "bnb-nf4-in-float": (
        lambda linear: _bnb_4bit(linear, quant_type="nf4", quant_storage=torch.float32),
        _dense_4bit,
        "bitsandbytes",
    ),
    "torchao-int8": (lambda linear: _torchao(linear, "Int8WeightOnlyConfig"), _dequantize, "torchao"),
    "torchao-intx-int4": (
        lambda linear: _torchao(
            linear, "IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=_torchao_group(32)
        ),
        _dequantize,
        "torchao",
    ),
    "torchao-float8": (lambda linear: _torchao(linear, "Float8WeightOnlyConfig"), _dequantize, "torchao"),
    "gptq": (PackedLinear, PackedLinear.dense, None),
    "gptq-old-names": (OldPackedLinear, PackedLinear.dense, None),
}
MERGEABLE = [name for name in KINDS if not name.startswith("gptq")]


def _torchao_group(size: int) -> Any:
    from torchao.quantization.granularity import PerGroup

    return PerGroup(size)


def need(library: str | None) -> None:
    """Skip a test whose library is not installed."""
    if library is not None and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def quantised(
    kind: str, dtype: torch.dtype = torch.float32, bias: bool = True, sizes: tuple[int, int] = (IN, OUT)
) -> tuple[nn.Module, Tensor, Tensor | None]:
    """A quantised linear layer, its dense weight (n, D) and its bias, both float64; skips without the library."""
    make, dense, library = KINDS[kind]
    need(library)
    torch.manual_seed(0)
    linear = nn.Linear(*sizes, bias=bias).to(dtype)
    before = None if linear.bias is None else linear.bias.detach().double()
    layer = make(linear)
    return layer, dense(layer).detach().double(), before


def dense_weight(kind: str, layer: Any) -> Tensor:
    """The dense weight (n, D) of a layer as it is now, float64."""
    return KINDS[kind][1](layer).detach().double()
