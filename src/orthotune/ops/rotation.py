"""Rotate row vectors by a tree: the operators ``orthotune::rotate`` and ``orthotune::rotated_linear``.

One tree's ``rotations`` (see :mod:`orthotune.ops.givens`) come as angles in radians (D - 1,), or as 2x2 blocks
(D - 1, 2, 2). Each backward keeps its input and the rotations alone; every intermediate is rebuilt from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orthotune.ops import plan, staged
from orthotune.ops.cpu import kernels
from orthotune.ops.cuda import usable
from orthotune.ops.precision import full_precision
from orthotune.ops.tensors import as_rows, contiguous_like


def as_blocks(rotations: Tensor) -> Tensor:
    """Return rotations as contiguous blocks (D - 1, 2, 2): of an angle t, ``[[cos t, -sin t], [sin t, cos t]]``."""
    if rotations.ndim == 3:
        return rotations.contiguous()
    cos, sin = rotations.cos(), rotations.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).view(-1, 2, 2)


def _gradient(rotations: Tensor, blocks: Tensor, grad_blocks: Tensor) -> Tensor:
    """Return the gradient of ``rotations`` from that of the ``blocks`` made of them."""
    if rotations.ndim == 3:
        return grad_blocks
    cos, sin = blocks[:, 0, 0], blocks[:, 1, 0]
    return cos * (grad_blocks[:, 1, 0] - grad_blocks[:, 0, 1]) - sin * (grad_blocks[:, 0, 0] + grad_blocks[:, 1, 1])


def _implementation(x: Tensor) -> Any:
    """Return what rotates ``x``, in place of the formulae in PyTorch where there is something faster."""
    return kernels(x) or staged


def _chunks(x: Tensor, blocks: Tensor) -> Iterable[slice]:
    """Cut the rows of ``x`` (T, D) where they have to be converted to the dtype of ``blocks``, else not at all."""
    return [slice(None)] if x.dtype == blocks.dtype else staged.chunks(*x.shape)


def rotate_rows(x: Tensor, blocks: Tensor, transpose: bool) -> Tensor:
    """Return x R or x R^T for rows (T, D), computed in the dtype of ``blocks`` and given in that of ``x``."""
    if usable(x):
        from orthotune.ops.cuda import rotation as cuda

        return cuda.rotate(x, blocks, transpose)
    x = x.contiguous()
    y = torch.empty_like(x)
    for chunk in _chunks(x, blocks):
        part = x[chunk].to(blocks.dtype)
        out = y[chunk] if x.dtype == blocks.dtype else part
        _implementation(part).rotate(part, blocks, transpose, out)
        if out is part:
            y[chunk] = part
    return y


def rotate_rows_backward(x: Tensor, grad: Tensor, blocks: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and blocks from that of :func:`rotate_rows`. ``grad`` is used up."""
    if usable(x):
        from orthotune.ops.cuda import rotation as cuda

        return cuda.rotate_backward(x, grad, blocks, transpose)
    total = torch.zeros_like(blocks)
    for chunk in _chunks(x, blocks):
        part, grad_part = x[chunk].to(blocks.dtype), grad[chunk].to(blocks.dtype)
        total += _implementation(part).rotate_backward(part, blocks, transpose, grad_part)
        if grad.dtype != blocks.dtype:
            grad[chunk] = grad_part
    return grad, total


@torch.library.custom_op("orthotune::rotate", mutates_args=())
def _rotate(x: Tensor, rotations: Tensor, transpose: bool) -> Tensor:
    with full_precision(x):
        return rotate_rows(as_rows(x), as_blocks(rotations), transpose).view(x.shape)


@_rotate.register_fake
def _(x: Tensor, rotations: Tensor, transpose: bool) -> Tensor:
    return contiguous_like(x)[0]


@torch.library.custom_op("orthotune::rotate_backward", mutates_args=())
def _rotate_backward(x: Tensor, grad: Tensor, rotations: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
    with full_precision(x):
        grad = grad.reshape(-1, x.shape[-1]).clone(memory_format=torch.contiguous_format)
        blocks = as_blocks(rotations)
        grad_x, grad_blocks = rotate_rows_backward(as_rows(x), grad, blocks, transpose)
        return grad_x.view(x.shape), _gradient(rotations, blocks, grad_blocks)


@_rotate_backward.register_fake
def _(x: Tensor, grad: Tensor, rotations: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
    grad_x, grad_rotations = contiguous_like(x, rotations)
    return grad_x, grad_rotations


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    x, rotations, ctx.transpose = inputs
    ctx.save_for_backward(x, rotations)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, rotations = ctx.saved_tensors
    return (*torch.ops.orthotune.rotate_backward(x, grad, rotations, ctx.transpose), None)


_rotate.register_autograd(_backward, setup_context=_save)


def rotate(x: Tensor, rotations: Tensor, transpose: bool = False) -> Tensor:
    """Return ``x R`` or ``x R^T``, (..., D), for one tree's ``rotations``, float32 or float64.

    ``x`` may be of any floating dtype; the arithmetic is done in the dtype of ``rotations`` and the result rounded
    to that of ``x`` once. Differentiable in both.
    """
    return torch.ops.orthotune.rotate(x, rotations, transpose)


@torch.library.custom_op("orthotune::rotated_linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, rotations: Tensor) -> Tensor:
    with full_precision(x):
        rows, blocks = as_rows(x), as_blocks(rotations)
        if plan.on_weight_side(rows, weight, x_passes=2, y_passes=0, weight_passes=2):
            y = plan.linear(rows, weight, bias, lambda part, _: rotate_rows(part, blocks, True))
        else:
            y = F.linear(rotate_rows(rows, blocks, False), weight, bias)
        return y.view(*x.shape[:-1], len(weight))


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, rotations: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("orthotune::rotated_linear_backward", mutates_args=())
def _linear_backward(x: Tensor, grad: Tensor, weight: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
    with full_precision(x):
        grad_rotated = grad.reshape(-1, len(weight)) @ weight
        blocks = as_blocks(rotations)
        grad_x, grad_blocks = rotate_rows_backward(as_rows(x), grad_rotated, blocks, False)
        return grad_x.view(x.shape), _gradient(rotations, blocks, grad_blocks)


@_linear_backward.register_fake
def _(x: Tensor, grad: Tensor, weight: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, grad_rotations = contiguous_like(x, rotations)
    return grad_x, grad_rotations


def _save_linear(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, rotations = inputs
    ctx.save_for_backward(x, weight, rotations)
    ctx.has_bias = bias is not None


def _backward_linear(ctx: Any, grad: Tensor) -> Any:
    x, weight, rotations = ctx.saved_tensors
    plan.check_frozen(ctx.needs_input_grad[1])
    grad_x, grad_rotations = torch.ops.orthotune.rotated_linear_backward(x, grad, weight, rotations)
    grad_bias = plan.bias_gradient(grad) if ctx.needs_input_grad[2] else None
    return grad_x, None, grad_bias, grad_rotations


_linear.register_autograd(_backward_linear, setup_context=_save_linear)


def rotated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, rotations: Tensor) -> Tensor:
    """Return ``(x R) W + bias``, (..., n), for a frozen ``weight`` (n, D) in torch's layout.

    ``x``, ``weight`` and ``bias`` share a dtype; ``rotations`` are one tree's, float32 or float64. The rotation
    is applied to x or, where that moves fewer numbers, to the weight. Differentiable in all but the weight.
    """
    return torch.ops.orthotune.rotated_linear(x, weight, bias, rotations)
