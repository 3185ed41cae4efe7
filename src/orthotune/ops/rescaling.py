"""Low-rank rescaling of a weight (RLRR).

Source: Dong et al., "Low-Rank Rescaled Vision Transformer Fine-Tuning: A Residual Design Approach", CVPR 2024
(arXiv 2403.19067). With W (D x n, the papers' layout), S_left (D x r) and S_right (r x n),

    W* = W + (S_left S_right) (.) W        (residual)
    W* = (S_left S_right) (.) W            (without the residual)

where (.) is the element-wise product. In torch's layout the weight is (out, in) = (n, D), so the gain is transposed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from orthotune.ops.precision import full_precision


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
        return F.linear(x, rescale_weight(weight, left, right, residual).to(x.dtype), bias).contiguous()


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, residual: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("orthotune::rescaled_linear_backward", mutates_args=())
def _linear_backward(
    x: Tensor, grad: Tensor, weight: Tensor, left: Tensor, right: Tensor, residual: bool
) -> list[Tensor]:
    """Gradients with respect to x, left, right and bias: W* is rebuilt, G = x^T dy is the only other big product."""
    with full_precision(x):
        flat, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = (grad @ rescale_weight(weight, left, right, residual).to(x.dtype)).reshape(x.shape)
        weighted = (grad.T @ flat).to(left.dtype).mul_(weight)  # (n, D) = G^T (.) W
        return [
            grad_x.contiguous(),
            weighted.T @ right.T,
            left.T @ weighted.T,
            grad.sum(0, dtype=left.dtype).to(grad.dtype),
        ]


@_linear_backward.register_fake
def _(x: Tensor, grad: Tensor, weight: Tensor, left: Tensor, right: Tensor, residual: bool) -> list[Tensor]:
    return [*(torch.empty_like(t) for t in (x, left, right)), grad.new_empty(grad.shape[-1])]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, left, right, ctx.residual = inputs
    ctx.save_for_backward(x, weight, left, right)
    ctx.has_bias = bias is not None


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight, left, right = ctx.saved_tensors
    if ctx.needs_input_grad[1]:
        raise NotImplementedError("the base weight of a rescaled layer is frozen: it has no gradient here")
    grads = torch.ops.orthotune.rescaled_linear_backward(x, grad, weight, left, right, ctx.residual)
    return grads[0], None, grads[3] if ctx.has_bias else None, grads[1], grads[2], None


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
