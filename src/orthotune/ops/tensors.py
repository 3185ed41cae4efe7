"""Shapes that the operators share: activations as rows, and results as contiguous tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """Return activations (..., D) as contiguous rows (N, D)."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def contiguous_like(*tensors: Tensor) -> list[Tensor]:
    """Return an empty contiguous tensor of the shape, dtype and device of each."""
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
