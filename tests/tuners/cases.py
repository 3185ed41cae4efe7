"""The configurations that every tuner test runs on, and small models to run them on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from orthotune import AOFTConfig, GOFTConfig, RLRRConfig

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
    "rlrr-right": (RLRRConfig, {"left": False}),
    "rlrr-no-residual": (RLRRConfig, {"residual": False}),
    "rlrr-no-residual-r2": (RLRRConfig, {"residual": False, "r": 2}),
    "rlrr-without-w": (RLRRConfig, {"multiply_base": False, "r": 2}),
    "rlrr-no-shift": (RLRRConfig, {"shift": False}),
    "aoft": (AOFTConfig, {"r": 3}),
    "aoft-no-scale": (AOFTConfig, {"r": 3, "learn_scale": False}),
}


def config(name: str, **kwargs: Any) -> Any:
    """Make a fresh configuration of one of the cases."""
    cls, defaults = CONFIGS[name]
    return cls(**{**defaults, **kwargs})


class Linears(nn.Module):
    """Two linear layers, sizes that are not powers of two, and a head."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(10, 7, bias=bias)
        self.norm = nn.LayerNorm(7)
        self.second = nn.Linear(7, 12, bias=bias)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.norm(self.first(x)).tanh()))


class Convs(nn.Module):
    """Two-dimensional convolutions with non-square kernels, strides, padding and dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.second = nn.Conv2d(6, 5, (1, 3), padding="same")
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).tanh()).mean((2, 3)))


class Conv1Ds(nn.Module):
    """transformers' Conv1D: a linear layer stored (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Conv1D(7, 10)
        self.second = Conv1D(12, 7)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).tanh()))


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "linear": (Linears, (4, 5, 10)),
    "conv1d": (Conv1Ds, (4, 5, 10)),
    "conv2d": (Convs, (2, 3, 9, 8)),
}


def model_and_input(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    """Make one of the small models, in evaluation mode, and an input for it; the same ones every time."""
    torch.manual_seed(0)
    cls, shape = MODELS[name]
    return cls().eval().to(dtype), torch.randn(shape).to(dtype)
