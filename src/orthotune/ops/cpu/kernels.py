"""Call the compiled kernels on tensors.

Every tensor is contiguous, on the CPU and of the kernels' dtype; T counts tokens, D and n are a layer's inputs and
outputs. The formulae are those of :mod:`orthotune.ops.givens`, ``approx_orthogonal`` and ``rescaling``.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

import torch
from torch import Tensor

from orthotune.ops.cpu.build import compiled

REAL = {torch.float32: "float", torch.float64: "double"}
KINDS = {"p": ctypes.c_void_p, "d": ctypes.c_double, "b": ctypes.c_bool, "i": ctypes.c_int64}
ARGUMENTS = {  # of each function in kernels.cpp, in its order
    "rotate": "pppiibi",
    "rotate_backward": "ppppiibi",
    "approx_orthogonal_add": "pppppdiiiii",
    "approx_orthogonal_backward": "ppppppdpiiiii",
    "approx_orthogonal_weight": "pppppdiiiii",
    "rescale": "ppppdiiiii",
    "rescale_backward": "ppppppiiiii",
}


def kernels(x: Tensor) -> Kernels | None:
    """Return the kernels that can take ``x``, by its device and dtype, or None where there are none."""
    usable = x.device.type == "cpu" and x.dtype in REAL and os.environ.get("ORTHOTUNE_CPU_KERNELS") != "0"
    return _load(x.dtype) if usable else None


@lru_cache(maxsize=2)
def _load(dtype: torch.dtype) -> Kernels | None:
    library = compiled(REAL[dtype])
    return None if library is None else Kernels(ctypes.CDLL(str(library)))


class Kernels:
    """The functions of one compiled library. A result depends on the number of threads only in its last digits."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {}
        for name, arguments in ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = [KINDS[kind] for kind in arguments], None
            self._functions[name] = function

    def _call(self, name: str, *args: Tensor | int | float | bool | None) -> None:
        values = [arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args]
        self._functions[name](*values, torch.get_num_threads())

    def rotate(self, x: Tensor, blocks: Tensor, transpose: bool, out: Tensor) -> None:
        """Write x R or x R^T, (T, D), into ``out``, which may be ``x`` itself; ``blocks`` (D - 1, 2, 2)."""
        self._call("rotate", x, blocks, out, *x.shape, transpose)

    def rotate_backward(self, x: Tensor, blocks: Tensor, transpose: bool, grad: Tensor) -> Tensor:
        """Turn ``grad`` (T, D), of x R or x R^T, into that of x in place; return that of ``blocks``."""
        grad_blocks = torch.empty_like(blocks)
        self._call("rotate_backward", x, blocks, grad, grad_blocks, *x.shape, transpose)
        return grad_blocks

    def approx_orthogonal_add(self, y: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: Tensor, pole: float) -> None:
        """Add x AO(down) diag(scale) AO(up)^T to ``y`` (T, n) in place; 1 + q_0 is held at least ``pole`` from 0."""
        self._call("approx_orthogonal_add", y, x, down, up, scale, pole, len(x), *map(len, (down, up, scale)))

    def approx_orthogonal_backward(
        self,
        grad_x: Tensor | None,
        x: Tensor,
        grad: Tensor,
        down: Tensor,
        up: Tensor,
        scale: Tensor,
        pole: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of down, up and scale; add the update's part to ``grad_x`` (T, D), if given."""
        sizes = [len(down), len(up), len(scale)]
        sums = x.new_empty(sum(sizes))
        self._call("approx_orthogonal_backward", grad_x, x, grad, down, up, scale, pole, sums, len(x), *sizes)
        grad_down, grad_up, grad_scale = sums.split(sizes)
        return grad_down.clone(), grad_up.clone(), grad_scale.clone()

    def approx_orthogonal_weight(
        self,
        weight: Tensor,
        down: Tensor,
        up: Tensor,
        scale: Tensor,
        pole: float,
        start: int,
        out: Tensor,
    ) -> None:
        """Write the rows ``weight`` (rows, D), from ``start`` on, of a weight (n, D) plus their update into ``out``."""
        self._call("approx_orthogonal_weight", out, weight, down, up, scale, pole, start, *weight.shape, len(scale))

    def rescale(self, weight: Tensor, left: Tensor, right: Tensor, base: float, out: Tensor) -> None:
        """Write (base + right^T left) (.) weight, (n, D), into ``out``, from ``left`` (r, D) and ``right`` (r, n).

        The rows of ``right`` may lie further apart than n.
        """
        self._call("rescale", out, weight, left, right, base, *weight.shape, len(left), right.stride(0))

    def rescale_backward(
        self, product: Tensor, weight: Tensor, left: Tensor, right: Tensor, grad_left: Tensor, grad_right: Tensor
    ) -> None:
        """With H = product (.) weight, (n, D): add right H to ``grad_left`` (r, D), write left H^T into ``grad_right``.

        The rows of ``right`` and ``grad_right`` (r, n) may lie further apart than n.
        """
        pointers = product, weight, left, right, grad_left, grad_right
        self._call("rescale_backward", *pointers, *weight.shape, len(left), right.stride(0))
