"""Low-rank rescaling of a weight (RLRR).

Source: Dong et al., "Low-Rank Rescaled Vision Transformer Fine-Tuning: A Residual Design Approach", CVPR 2024
(arXiv 2403.19067). With W (D x n, the papers' layout), S_left (D x r) and S_right (r x n),

    W* = W + (S_left S_right) (.) W        (residual)
    W* = (S_left S_right) (.) W            (without the residual)

where (.) is the element-wise product. In torch's layout the weight is (out, in) = (n, D), so the gain is transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.ops import plan
from orthotune.ops.cpu import kernels
from orthotune.ops.cuda import usable
from orthotune.ops.precision import full_precision
from orthotune.ops.tensors import as_rows, contiguous_like


def gain(left: Tensor, right: Tensor, residual: bool) -> Tensor:
    """Return what each entry of an (out, in) weight is multiplied by, (n, D), from left (D, r) and right (r, n)."""
    product = right.T @ left.T
    return product + 1 if residual else product


def rescale_weight(weight: Tensor, left: Tensor, right: Tensor, residual: bool = True) -> Tensor:
    """Return W* (n, D) for a weight (n, D) in torch's layout, in the weight's dtype; differentiable."""
    return (gain(left, right, residual) * weight).to(weight.dtype)


@torch.library.custom_op("orthotune::rescaled_linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, residual: bool) -> Tensor:
    with full_precision(x):
        rows = x.reshape(-1, x.shape[-1])
        y = plan.linear(rows, weight, bias, _adapter(left, right, residual))
        return y.view(*x.shape[:-1], len(weight))


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, residual: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _adapter(left: Tensor, right: Tensor, residual: bool) -> plan.Adapt:
    """Return what rescales rows of a weight."""
    left, right = left.T.contiguous(), right.contiguous()

    def adapt(part: Tensor, rows: slice) -> Tensor:
        if usable(part):
            from orthotune.ops.cuda import rescaling as cuda

            return cuda.rescale(part.contiguous(), left.T, right[:, rows], residual)
        compiled = kernels(part) if part.dtype == left.dtype else None
        if compiled is None:
            return rescale_weight(part, left.T, right[:, rows], residual)
        part = part.contiguous()
        result = torch.empty_like(part)
        compiled.rescale(part, left, right[:, rows], float(residual), result)
        return result

    return adapt


def _factor_gradients(x: Tensor, grad: Tensor, weight: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of left (D, r) and right (r, n); G = grad^T x (n, D) exists a slice of rows at a time."""
    if usable(x):
        from orthotune.ops.cuda import rescaling as cuda

        return cuda.gradients(x, grad, weight.contiguous(), left, right)
    compiled = kernels(x) if x.dtype == weight.dtype == left.dtype else None
    left, right = left.T.contiguous(), right.contiguous()
    grad_left, grad_right = torch.zeros_like(left), torch.empty_like(right)
    for rows in plan.weight_rows(weight):
        part, product = weight[rows].contiguous(), (grad[:, rows].T @ x).to(left.dtype)
        if compiled is not None:
            compiled.rescale_backward(product, part, left, right[:, rows], grad_left, grad_right[:, rows])
        else:
            product.mul_(part)
            grad_left += right[:, rows] @ product
            grad_right[:, rows] = left @ product.T
    return grad_left.T, grad_right


@torch.library.custom_op("orthotune::rescaled_linear_backward", mutates_args=())
def _linear_backward(
    x: Tensor, grad: Tensor, weight: Tensor, left: Tensor, right: Tensor, residual: bool
) -> list[Tensor]:
    """Gradients with respect to x, left and right: W* is rebuilt, G = x^T dy is the only other big product."""
    with full_precision(x):
        rows, grad = as_rows(x), as_rows(grad)
        grad_x = plan.linear_gradient(grad, weight, _adapter(left, right, residual)).view(x.shape)
        grad_left, grad_right = _factor_gradients(rows, grad, weight, left, right)
        return [grad_x, grad_left.contiguous(), grad_right.contiguous()]


@_linear_backward.register_fake
def _(x: Tensor, grad: Tensor, weight: Tensor, left: Tensor, right: Tensor, residual: bool) -> list[Tensor]:
    return contiguous_like(x, left, right)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _bias, left, right, ctx.residual = inputs
    ctx.save_for_backward(x, weight, left, right)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, weight, left, right = ctx.saved_tensors
    plan.check_frozen(ctx.needs_input_grad[1])
    grads = torch.ops.orthotune.rescaled_linear_backward(x, grad, weight, left, right, ctx.residual)
    grad_bias = plan.bias_gradient(grad) if ctx.needs_input_grad[2] else None
    return grads[0], None, grad_bias, grads[1], grads[2], None


_linear.register_autograd(_backward, setup_context=_save)


def rescaled_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, residual: bool = True
) -> Tensor:
    """Return ``x W* + bias``, (..., n), for a frozen ``weight`` (n, D); differentiable in all but the weight.

    ``x``, ``weight`` and ``bias`` share a dtype; ``left`` (D, r) and ``right`` (r, n) are float32 or float64, in which
    W* is formed before it is rounded once to the weight's dtype, as merging would. The backward keeps x alone:
    W* is rebuilt. Three products of the layer's size a step, against two for a frozen layer.
    """
    return torch.ops.orthotune.rescaled_linear(x, weight, bias, left, right, residual)
