"""Triton kernels of the operators, for CUDA tensors.

The modules here need Triton, which CPU-only builds of torch do not bring: import them where :func:`usable` says so.
Each has the maths of its namesake one folder up. No kernel uses atomics: sums over tokens are kept in a buffer per
program and added up in a fixed order, so that a result is the same every time on the same device.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

# Contract a product and a sum into one instruction, on every version of Triton whatever its default.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


def usable(x: torch.Tensor) -> bool:
    """Return whether the kernels can take ``x``: on an NVIDIA GPU of the Ampere generation or later, with Triton."""
    return x.is_cuda and _usable(x.device)


@lru_cache(maxsize=64)
def _usable(device: torch.device) -> bool:
    if (
        torch.version.hip is not None
        or torch.cuda.get_device_capability(device) < (8, 0)
        or find_spec("triton") is None
    ):
        return False
    import triton.language as tl

    return hasattr(tl, "gather")  # older ones lack what the rotation is made of


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; 1 for the CPU, where Triton interprets kernels."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
