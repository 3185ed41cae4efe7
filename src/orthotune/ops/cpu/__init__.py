"""The kernels of the CPU: C++ compiled on first use, for float32 and float64.

:func:`kernels` gives them where a C++ compiler with OpenMP is at hand, otherwise None, and the callers compute the same
in PyTorch. ``ORTHOTUNE_CPU_KERNELS=0`` in the environment switches them off.
"""

from orthotune.ops.cpu.kernels import Kernels, kernels

__all__ = ["Kernels", "kernels"]
