"""What an adapter changes in each layer of the plain model, whatever the method."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import InputError
from orthotune.tuners.fused import FusedProjection
from orthotune.tuners.hosts import Conv2dHost, LinearHost, NormHost
from orthotune.tuners.layer import AdapterLayer, base_of
from orthotune.tuners.traversal import modules_outside

#: Factors A (k, D) and B (n, k) of a change B A.
Factors = tuple[Tensor, Tensor]

#: What stands in a model with adapters where the plain model has a module of its own.
WRAPPERS: tuple[type[nn.Module], ...] = (BaseTunerLayer, FusedProjection, AuxiliaryTrainingWrapper)  # type: ignore[assignment]


@dataclass
class Change:
    """What an adapter adds to one linear layer or convolution; all float64.

    Attributes:
        name: the layer's name in the plain model.
        base: the layer in the plain model (of a fused projection: the first part's).
        weight: (n, D), a convolution's kernels laid flat.
        bias: (n,), None where the bias does not change.
        factors: exact factors of ``weight``, where the method has them.
    """

    name: str
    base: Any
    weight: Tensor
    bias: Tensor | None
    factors: Factors | None


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that the model has without its adapters, by their names there."""
    return modules_outside(model, *WRAPPERS)


def adapters_of(module: nn.Module) -> set[str]:
    """Return the names of the adapters that a tuner layer holds parameters of."""
    if isinstance(module, AdapterLayer):
        return set(module.adapter_options)
    if isinstance(module, BaseTunerLayer):
        return {adapter for name in module.adapter_layer_names for adapter in getattr(module, name)}
    return set()


def linear_changes(model: nn.Module, adapter: str) -> Iterator[Change]:
    """Yield the change of each linear layer and convolution that the adapter is on, one at a time.

    The parts of a fused projection are one layer again. Norms are left to :func:`adapted_norms`.
    Raises InputError, naming the layer, for a method whose change is not one of weight and bias.
    """
    for name, module in plain_modules(model):
        if isinstance(module, FusedProjection):
            parts = [getattr(module, part) for part in module.parts]
            if any(adapter in adapters_of(part) for part in parts):
                changes = [
                    layer_change(f"{name}.{p}", part, adapter) for p, part in zip(module.parts, parts, strict=True)
                ]
                yield _joined(name, changes)
        elif adapter in adapters_of(module) and not isinstance(module, NormHost):
            yield layer_change(name, module, adapter)


def adapted_norms(model: nn.Module, adapter: str) -> dict[str, dict[str, Tensor]]:
    """Return the whole parameters, in the base's dtype, of each norm that the adapter changes, by the norm's name."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, module in plain_modules(model):
        if isinstance(module, NormHost) and adapter in adapters_of(module):
            base = module.get_base_layer()
            change = module.weight_change(adapter)
            found[name] = {
                key: (value + shift).detach().to(value.dtype)
                for key, value, shift in zip(
                    ("weight", "bias"), (base.weight, getattr(base, "bias", None)), change, strict=True
                )
                if value is not None and shift is not None
            }
    return found


def layer_change(name: str, layer: Any, adapter: str, *, by_merging: bool = False) -> Change:
    """Return the change of one linear layer or convolution, the plain layer's name being ``name``.

    With ``by_merging``, the change of a method that only says how it is merged is what merging changes in a copy of
    the layer; otherwise InputError for such a method, as for a change that is not one of weight and bias.
    """
    base = base_of(layer)
    if adapter not in adapters_of(layer):  # a part of a fused projection that is left alone
        shape = base.weight.shape[::-1] if isinstance(base, Conv1D) else base.weight.shape
        zero = torch.zeros(shape, dtype=torch.float64, device=base.weight.device)
        return Change(name, base, zero, None, (zero[:0], zero[:, :0]))
    if isinstance(layer, LinearHost | Conv2dHost):
        weight, bias = layer.weight_change(adapter)
        weight = weight.T if isinstance(layer, LinearHost) and layer.fan_in_fan_out else weight.flatten(1)
        with torch.no_grad():
            factors = layer.low_rank_change(adapter)
        return Change(name, base, weight, None if bias is None or not bias.any() else bias, factors)
    if isinstance(layer, LoraLayer) and adapter not in layer.lora_variant and _is_plain_lora(layer, adapter):
        down, up, scale = layer.lora_A[adapter], layer.lora_B[adapter], layer.scaling[adapter]
        a, b = down.weight.detach().double().flatten(1), scale * up.weight.detach().double().flatten(1)
        return Change(name, base, b @ a, None if up.bias is None else scale * up.bias.detach().double(), (a, b))
    if by_merging and isinstance(base, nn.Linear | Conv1D | nn.Conv2d):
        return _merging_change(name, layer, adapter)
    raise InputError(
        f"layer {name!r} has an adapter of type {type(layer).__module__}.{type(layer).__name__}, whose effect is not "
        "known to be a change of the layer's weight and bias: it cannot be written as a LoRA; merge the adapter instead"
    )


def _is_plain_lora(layer: LoraLayer, adapter: str) -> bool:
    """Whether the adapter's A and B are layers; AdaLoRA's are bare matrices, with singular values between them."""
    return adapter in layer.lora_A and isinstance(layer.lora_A[adapter], nn.Module)


@torch.no_grad()
def _merging_change(name: str, layer: Any, adapter: str) -> Change:
    """Return what merging changes in a float64 copy of the layer."""
    base = layer.get_base_layer()
    if layer.merged:
        raise InputError(f"layer {name!r} has adapters merged into it: call unmerge_adapter() first")
    merged = copy.deepcopy(layer).double()
    merged.merge(adapter_names=[adapter])
    after = merged.get_base_layer()
    weight = after.weight - base.weight.double()
    weight = weight.T if isinstance(base, Conv1D) else weight.flatten(1)
    bias = None if base.bias is None else after.bias - base.bias.double()
    return Change(name, base, weight, bias if bias is not None and bias.any() else None, None)


def _joined(name: str, parts: list[Change]) -> Change:
    """Return the change of the fused layer: its outputs are the parts' outputs one after the other."""
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat(
            [part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in parts]
        )
    factors = [part.factors for part in parts if part.factors is not None]
    joined = None
    if len(factors) == len(parts):
        joined = torch.cat([a for a, _ in factors]), torch.block_diag(*(b for _, b in factors))
    return Change(name, parts[0].base, torch.cat([part.weight for part in parts]), bias, joined)
