"""Apply a staged rotation to row vectors: the operator ``orthotune::rotate`` and its gradient.

A rotation comes as the matrices of its stages (see :mod:`orthotune.ops.givens`): ``matrices[0]`` is
(nb, k, k) and acts on nb blocks of k neighbouring coordinates, the rest is a rotation of the nb first
coordinates of those blocks; the last holds one dense matrix. As x sees it, coarse comes before fine:

    x R:     x[:, ::k] <- x[:, ::k] R_coarse;   x <- each block times its matrix
    x R^T:   x <- each block times its matrix transposed;   x[:, ::k] <- x[:, ::k] R_coarse^T

The backward keeps x and the matrices alone and rebuilds the coarse coordinates (1 / k of the numbers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from orthotune.ops.precision import full_precision

CHUNK = 2**18  # numbers of x worked on at a time: a chunk and its copies stay in a core's cache


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Cut ``rows`` into slices of about CHUNK numbers; at least one slice."""
    size = max(CHUNK // width, 16)
    yield from (slice(start, start + size) for start in range(0, max(rows, 1), size))


def _as_blocks(x: Tensor, count: int, size: int) -> Tensor:
    """View (T, D) as (count, T, size), padding D with zeros up to count * size."""
    padding = count * size - x.shape[1]
    if padding:
        x = F.pad(x, (0, padding))
    return x.reshape(x.shape[0], count, size).transpose(0, 1)


def _from_blocks(y: Tensor, width: int) -> Tensor:
    """Turn (count, T, size) back into a new (T, width) tensor."""
    count, rows, size = y.shape
    return y.transpose(0, 1).reshape(rows, count * size)[:, :width]


def _apply(x: Tensor, matrices: Sequence[Tensor], transpose: bool) -> Tensor:
    matrix = matrices[0]
    count, size, _ = matrix.shape
    if len(matrices) == 1:
        return x @ (matrix[0].T if transpose else matrix[0])
    if transpose:
        y = _from_blocks(_as_blocks(x, count, size) @ matrix.mT, x.shape[1])
        y[:, ::size] = _apply(y[:, ::size], matrices[1:], True)
        return y
    x = x.clone()
    x[:, ::size] = _apply(x[:, ::size], matrices[1:], False)
    return _from_blocks(_as_blocks(x, count, size) @ matrix, x.shape[1])


def _gradients(x: Tensor, grad: Tensor, matrices: Sequence[Tensor], transpose: bool) -> tuple[Tensor, list[Tensor]]:
    """Gradients of :func:`_apply` with respect to x (T, D) and to each matrix."""
    matrix = matrices[0]
    count, size, _ = matrix.shape
    if len(matrices) == 1:
        if transpose:
            return grad @ matrix[0], [(grad.T @ x)[None]]
        return grad @ matrix[0].T, [(x.T @ grad)[None]]
    x_blocks = _as_blocks(x, count, size)
    if transpose:
        coarse = (x_blocks * matrix[:, None, 0]).sum(-1).T
        grad = grad.clone()
        grad_coarse, rest = _gradients(coarse, grad[:, ::size], matrices[1:], True)
        grad[:, ::size] = grad_coarse
        grad_blocks = _as_blocks(grad, count, size)
        return _from_blocks(grad_blocks @ matrix, x.shape[1]), [grad_blocks.mT @ x_blocks, *rest]
    grad_blocks = _as_blocks(grad, count, size)
    grad_x = _from_blocks(grad_blocks @ matrix.mT, x.shape[1])
    coarse_in = x[:, ::size]
    coarse_out = _apply(coarse_in, matrices[1:], False)
    grad_matrix = x_blocks.mT @ grad_blocks
    grad_matrix[:, 0] = (coarse_out.T[:, None] @ grad_blocks)[:, 0]
    grad_coarse, rest = _gradients(coarse_in, grad_x[:, ::size], matrices[1:], False)
    grad_x[:, ::size] = grad_coarse
    return grad_x, [grad_matrix, *rest]


@torch.library.custom_op("orthotune::rotate", mutates_args=())
def _rotate(x: Tensor, matrices: list[Tensor], transpose: bool) -> Tensor:
    with full_precision(x):
        dtype, rows = matrices[0].dtype, x.reshape(-1, x.shape[-1])
        y = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for chunk in _chunks(*rows.shape):
            y[chunk] = _apply(rows[chunk].to(dtype), matrices, transpose)
        return y.view(x.shape)


@_rotate.register_fake
def _(x: Tensor, matrices: list[Tensor], transpose: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("orthotune::rotate_backward", mutates_args=())
def _rotate_backward(x: Tensor, grad: Tensor, matrices: list[Tensor], transpose: bool) -> list[Tensor]:
    with full_precision(x):
        dtype, width = matrices[0].dtype, x.shape[-1]
        rows, grad_rows = x.reshape(-1, width), grad.reshape(-1, width)
        grad_x = torch.empty_like(rows, memory_format=torch.contiguous_format)
        grad_matrices = [torch.zeros_like(matrix) for matrix in matrices]
        for chunk in _chunks(*rows.shape):
            grad_x[chunk], parts = _gradients(rows[chunk].to(dtype), grad_rows[chunk].to(dtype), matrices, transpose)
            for total, part in zip(grad_matrices, parts, strict=True):
                total.add_(part)
        return [grad_x.view(x.shape), *grad_matrices]


@_rotate_backward.register_fake
def _(x: Tensor, grad: Tensor, matrices: list[Tensor], transpose: bool) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, *matrices)]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, matrices, transpose = inputs
    ctx.save_for_backward(x, *matrices)
    ctx.transpose = transpose


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, *matrices = ctx.saved_tensors
    grad_x, *grad_matrices = torch.ops.orthotune.rotate_backward(x, grad, matrices, ctx.transpose)
    return grad_x, grad_matrices, None


_rotate.register_autograd(_backward, setup_context=_save)


def rotate(x: Tensor, matrices: list[Tensor], transpose: bool = False) -> Tensor:
    """Return ``x R`` or ``x R^T``, (..., D), for the rotation whose stage matrices are given, finest first.

    ``x`` may be of any floating dtype; the arithmetic is done in the dtype of ``matrices`` and the result rounded
    to that of ``x`` once. Differentiable in ``x`` and ``matrices``.
    """
    return torch.ops.orthotune.rotate(x, matrices, transpose)
