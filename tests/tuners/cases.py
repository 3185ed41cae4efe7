"""The cases that every tuner test runs on, made from the registry, and small models to run them on.

A case is a method of the registry, or one whose field has another value than its default: every choice of a field that
has few, and a small number for a whole one.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import timm
import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import InputError
from orthotune.methods import METHODS
from orthotune.targets.resolve import target_modules
from orthotune.tuners._registration import tuner_of
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.supported import UnsupportedLayerError, host_of

OWN = {name: method for name, method in METHODS.items() if method.is_own}
SMALL = 3  # ranks and the like: the models below are small
_COMMON = {f.name for f in dataclasses.fields(AdapterConfig)} | {"init_weights"}


def _small(config_cls: type, values: dict[str, Any]) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(config_cls) if f.name not in _COMMON}
    sizes = {k: min(v, SMALL) for k, v in {**defaults, **values}.items() if type(v) is int}
    return {**values, **{k: v for k, v in sizes.items() if values.get(k, defaults[k]) != v}}


def _choices(hint: Any) -> list[Any]:
    if hint is bool:
        return [True, False]
    if hint is int:
        return [1, SMALL]
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [value for part in typing.get_args(hint) for value in _choices(part)]
    return [None] if hint is type(None) else []


def _variants(config_cls: type, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each set of fields that differs from ``values`` in one, and those in which a whole number is larger too."""
    hints = typing.get_type_hints(config_cls)
    fields = [f for f in dataclasses.fields(config_cls) if f.name not in _COMMON]
    single = [
        {f.name: choice}
        for f in fields
        for choice in _choices(hints[f.name])
        if choice != values.get(f.name, f.default) or type(choice) is not type(values.get(f.name, f.default))
    ]
    sizes = [variant for variant in single if hints[next(iter(variant))] is int]
    yield from single
    larger = [size for size in sizes if SMALL in size.values()]
    yield from ({**variant, **size} for variant in single if variant not in sizes for size in larger)


def _cases() -> dict[str, tuple[type, dict[str, Any]]]:
    cases = {n: (m.config_class(), _small(m.config_class(), dict(m.defaults))) for n, m in OWN.items()}
    for name, (config_cls, values) in list(cases.items()):
        for variant in _variants(config_cls, values):
            try:
                options = {**values, **variant}
                same = any(config_cls(**options) == cls(**other) for cls, other in cases.values() if cls is config_cls)
            except InputError:
                continue
            if not same:
                cases[f"{name}-" + "-".join(f"{k}={v}" for k, v in variant.items())] = config_cls, options
    return cases


CONFIGS = _cases()


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


class TinyViT(nn.Module):
    """A vision transformer of timm with two blocks, for the methods that need one; its targets are a method's own."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "global_pool": "avg"}
        self.vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
        nn.init.normal_(self.vit.cls_token)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.vit(x))


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "linear": (Linears, (4, 5, 10)),
    "conv1d": (Conv1Ds, (4, 5, 10)),
    "conv2d": (Convs, (2, 3, 9, 8)),
    "vit": (TinyViT, (4, 3, 8, 8)),
}
LAYERS = ["first", "second"]  # the targets in the models that are not a transformer


def model_and_input(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    """Make one of the small models, in evaluation mode, and an input for it; the same ones every time."""
    torch.manual_seed(0)
    cls, shape = MODELS[name]
    return cls().eval().to(dtype), torch.randn(shape).to(dtype)


def targets(name: str, model_name: str) -> dict[str, Any]:
    """Return the target modules of a case in one of the small models, as fields of its configuration."""
    if model_name != "vit":
        return {"target_modules": LAYERS}
    method = METHODS[method_of(name)]
    if method.targets is None:
        return {}
    return {"target_modules": target_modules(TinyViT(), method.targets)}


def method_of(name: str) -> str:
    """Return the method in the registry that a case is of."""
    return max((method for method in OWN if name == method or name.startswith(f"{method}-")), key=len)


def _applies(name: str, model_name: str) -> bool:
    """Whether the method of a case adapts the layers of a model."""
    hosts = getattr(tuner_of(CONFIGS[name][0]), "layer_classes", {})
    if model_name == "vit":
        return True
    model = MODELS[model_name][0]()
    try:
        return all(host_of(model.get_submodule(layer), layer) in hosts for layer in LAYERS)
    except UnsupportedLayerError:
        return False


ALL = [(name, model) for name in CONFIGS for model in MODELS if _applies(name, model)]
#: The cases on linear layers.
LINEAR = [name for name, model in ALL if model == "linear"]


def adapter_layers(model: nn.Module) -> list[AdapterLayer]:
    """Return the adapted layers of a model."""
    return [module for module in model.modules() if isinstance(module, AdapterLayer)]


def is_mergeable(model: PeftModel) -> bool:
    """Whether the model's active adapters have a merged form."""
    layers = adapter_layers(model)
    return not any(layer.merge_obstacle(a) for layer in layers for a in layer.own_adapters(layer.active_adapters))
