"""Triton kernels of the operators, for CUDA tensors.

The modules here need Triton, which CPU-only builds of torch do not bring: import them where a CUDA tensor is at hand.
Each has the maths of its namesake one folder up. No kernel uses atomics: sums over tokens are kept in a buffer per
program and added up in a fixed order, so that a result is the same every time on the same device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

# Contract a product and a sum into one instruction, on every version of Triton whatever its default.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; 1 for the CPU, where Triton interprets kernels."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
