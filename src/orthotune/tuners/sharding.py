"""FSDP and DeepSpeed's ZeRO-3: each process holds a part of a layer's tensors, which are whole only during a call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orthotune.errors import InputError


def shape_of(tensor: Tensor) -> torch.Size:
    """Return the shape of a tensor that ZeRO-3 may have emptied."""
    return torch.Size(getattr(tensor, "ds_shape", tensor.shape))


def is_sharded(layer: nn.Module) -> bool:
    """Whether the weight of a base layer is whole only while the layer, or a block that it is in, is called."""
    weight = layer.weight
    return bool(getattr(layer, "_is_fsdp_managed_module", False)) or hasattr(weight, "ds_id") or _is_dtensor(weight)


def check_whole(layer: nn.Module, name: str, action: str) -> None:
    """Raise InputError if ``action`` would have to write a sharded weight."""
    if is_sharded(layer):
        raise InputError(
            f"layer {name!r} cannot be {action}: its weight is sharded over processes (FSDP, ZeRO-3). Save the adapter "
            "with save_pretrained(folder, state_dict=accelerator.get_state_dict(model)), load it into a model that is "
            "not sharded, and merge there"
        )


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor's values from all processes; differentiable. Every process has to call it.

    Raises InputError for one that ZeRO-3 has emptied, which cannot be had back where gradients are wanted.
    """
    if _is_dtensor(tensor):
        return tensor.full_tensor()  # type: ignore[attr-defined, no-any-return]
    if tensor.shape != shape_of(tensor):
        size = shape_of(tensor).numel()
        raise InputError(
            f"a parameter of {size} numbers is needed whole, but ZeRO-3 has it partitioned: set "
            f"stage3_param_persistence_threshold to more than {size}, or use deepspeed.zero.GatheredParameters"
        )
    return tensor


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
