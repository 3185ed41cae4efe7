"""The rules of arithmetic precision that the methods share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float32 for the half precisions, otherwise ``dtype`` itself."""
    return torch.float32 if dtype in HALF else dtype


def layer_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype a linear layer would compute ``x`` in: autocast's where it is on, otherwise that of ``x``."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype is not torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off, so that an operator's own choice of dtype holds."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
