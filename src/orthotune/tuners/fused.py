"""Fused projections: one linear layer that computes several, adapted part by part as if they were separate.

timm's attention has one layer ``qkv`` whose output holds the queries, the keys and the values. When an adapter targets
one of the parts by name (``"q"``, ``"blocks.0.attn.qkv.v"``, ...), the layer is replaced by a
:class:`FusedProjection` with a child layer per part, on which any PEFT method works. Unloading puts the one layer back.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import InputError
from orthotune.tuners.layer import base_of
from orthotune.tuners.quantisers import as_quantised
from orthotune.tuners.sharding import whole

# name of the fused layer -> its equal parts, in the order of its outputs
FUSED_PARTS: dict[str, tuple[str, ...]] = {
    "qkv": ("q", "k", "v"),
    "to_qkv": ("q", "k", "v"),
    "c_attn": ("q", "k", "v"),
    "kv": ("k", "v"),
    "qk": ("q", "k"),
}

# last names of the layers that take the attention's input, fused or not
ATTENTION_INPUTS = frozenset(
    {*FUSED_PARTS, "q", "k", "v"}
    | {f"{prefix}{part}{suffix}" for part in "qkv" for prefix, suffix in (("", "_proj"), ("", "_lin"), ("to_", ""))}
    | {"query", "key", "value", "query_proj", "key_proj", "value_proj"}
)


def fused_parts(name: str, in_features: int, out_features: int) -> tuple[str, ...]:
    """Return the names of the equal parts of the linear layer ``name``; none if it is no fused layer, or not in parts.

    transformers has further layers named ``c_attn``, for cross attention and for shared keys, that are split otherwise.
    """
    last = name.rpartition(".")[2]
    parts = FUSED_PARTS.get(last, ())
    if not parts or out_features % len(parts) or (last == "c_attn" and out_features != 3 * in_features):
        return ()
    return parts


class FusedProjection(nn.Module):
    """The parts of a fused linear layer, run side by side: (..., D) -> (..., sum of the parts' outputs)."""

    def __init__(self, fused: nn.Linear | Conv1D, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.parts = parts
        self.transposed = isinstance(fused, Conv1D)
        weights = whole(fused.weight).data.chunk(len(parts), dim=1 if self.transposed else 0)
        biases = [None] * len(parts) if fused.bias is None else whole(fused.bias).data.chunk(len(parts))
        trainable = fused.weight.requires_grad
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            own_weight = nn.Parameter(weight.clone(), requires_grad=trainable)
            own_bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=trainable)
            self.add_module(part, self._linear(own_weight, own_bias).train(fused.training))

    def _linear(self, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear | Conv1D:
        in_features, out_features = weight.shape if self.transposed else weight.shape[::-1]
        with torch.device("meta"):
            if self.transposed:
                layer: nn.Linear | Conv1D = Conv1D(out_features, in_features)
            else:
                layer = nn.Linear(in_features, out_features, bias=bias is not None)
        # past register_parameter, which low_cpu_mem_usage patches to throw the values away
        layer._parameters["weight"] = weight
        if bias is not None:
            layer._parameters["bias"] = bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, part)(x) for part in self.parts], dim=-1)

    @property
    def weight(self) -> nn.Parameter:
        """A copy of the base weight in the fused layer's layout; changing it changes nothing."""
        weights = [base_of(getattr(self, part)).weight for part in self.parts]
        return self._joined(weights, dim=1 if self.transposed else 0)

    @property
    def bias(self) -> nn.Parameter | None:
        """A copy of the base bias in the fused layer's layout."""
        biases = [base_of(getattr(self, part)).bias for part in self.parts]
        return None if biases[0] is None else self._joined(biases, dim=0)

    @staticmethod
    def _joined(parameters: list[nn.Parameter], dim: int) -> nn.Parameter:
        trainable = any(p.requires_grad for p in parameters)
        return nn.Parameter(torch.cat([p.data for p in parameters], dim=dim), requires_grad=trainable)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the fused layer again, with the parts' adapters merged or dropped: PEFT calls this to unload."""
        for part in self.parts:
            layer = getattr(self, part)
            if merge and isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        return self._linear(self.weight, self.bias).train(self.training)


def targeted_parts(model: nn.Module, config: PeftConfig) -> dict[str, tuple[str, ...]]:
    """Return the fused layers of ``model``, by name, of which ``config.target_modules`` targets a part."""
    found = {}
    for name, module in model.named_modules():
        parts = FUSED_PARTS.get(name.rpartition(".")[2])
        if parts is None or isinstance(module, FusedProjection):
            continue
        if not any(is_targeted(config, f"{name}.{part}") for part in parts):
            continue
        if isinstance(module, BaseTunerLayer):
            raise InputError(
                f"target_modules names a part ({', '.join(parts)}) of {name!r}, which another adapter already adapts "
                "as a whole: let both adapters target the parts, or both the whole"
            )
        if as_quantised(module) is not None:
            raise InputError(
                f"target_modules names a part ({', '.join(parts)}) of {name!r}, whose quantised weight cannot be cut "
                "in parts: target the whole layer, or leave it out of the quantisation"
            )
        if isinstance(module, nn.Linear | Conv1D) and fused_parts(name, *_shape(module)):
            found[name] = parts
    return found


def is_targeted(config: PeftConfig, key: str) -> Any:
    """Whether ``config`` targets the module of this name; PEFT's rule, also for the indices of a top-level list.

    True or false in a condition; PEFT tells an excluded module from one that is not targeted by the object itself.
    """
    if getattr(config, "layers_to_transform", None) is not None:
        key = f"model.{key}"  # PEFT looks for the index after at least one parent
    return check_target_module_exists(config, key)


def _shape(module: nn.Linear | Conv1D) -> tuple[int, int]:
    shape = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
    return int(shape[0]), int(shape[1])


def split_fused_projections(model: nn.Module, config: PeftConfig) -> list[str]:
    """Replace, in place, each fused layer of which ``config.target_modules`` targets a part by its parts.

    GOFT, RLRR and AOFT do this by themselves; call it before ``get_peft_model`` to give LoRA or another PEFT method
    the same layers. Returns the names of the layers that were split, such as ``blocks.0.attn.qkv``.
    """
    if config.target_modules is None or config.target_modules == "all-linear":
        return []
    found = targeted_parts(model, config)
    for name, parts in found.items():
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, child, FusedProjection(getattr(parent, child), parts))
    return list(found)


def part_names(model: nn.Module) -> set[str]:
    """Return the names by which parts of fused layers in ``model`` could be targeted."""
    return {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        for part in fused_parts(name, *_shape(module))
    }
