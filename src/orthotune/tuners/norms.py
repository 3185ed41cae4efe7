"""Which normalisations end in a product with their weight, so that scaling the output is scaling weight and bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call


def is_channels_first(norm: Any) -> bool:
    """Whether the channels are dimension 1 of a normalisation's output rather than the last."""
    named = type(norm).__name__.endswith("2d") or getattr(norm, "data_format", None) == "channels_first"
    return named or isinstance(norm, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)


def scales_with_weight(norm: nn.Module) -> bool:
    """Whether a module is a normalisation of which turning the weight's and bias's sign turns the output's.

    Found by running it on a small input. It does not with a weight that counts from one (Gemma), an activation inside
    (timm's ``BatchNormAct2d``) or a way around (ConvNeXt V2's response norm). One that cannot be run so is taken to.
    """
    weight = getattr(norm, "weight", None)
    if "norm" not in type(norm).__name__.lower() or not isinstance(weight, nn.Parameter) or weight.ndim != 1:
        return False
    n = weight.numel()
    shape = (2, n, 3, 3) if is_channels_first(norm) else (2, 3, n)
    x = torch.arange(torch.Size(shape).numel(), device="cpu").sin().reshape(shape)
    tensors = dict((*norm.named_buffers(), *norm.named_parameters()))
    state = {name: torch.ones(tensor.shape, device="cpu") for name, tensor in tensors.items()}
    try:
        with torch.no_grad():
            plus = functional_call(norm, state, (x,))
            minus = functional_call(norm, {k: -v if k in ("weight", "bias") else v for k, v in state.items()}, (x,))
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return True
    return bool(torch.allclose(plus, -minus, atol=1e-4))
