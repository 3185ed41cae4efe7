"""Approximately orthogonal projections generated from one vector (AOFT), matrix-free.

Source: Yang et al., "Efficient Adaptation of Pre-trained Vision Transformer underpinned by Approximately Orthogonal
Fine-Tuning Strategy", ICCV 2025 (arXiv 2507.13260). A vector q of N numbers generates

    Q[:, 0] = q,    Q[0, j] = -q_j,    Q[i, j] = [i == j] - q_i q_j / (1 + q_0)    (i, j >= 1),    AO(q) = Q[:, :d].

Q is orthogonal exactly when ||q|| = 1. The update of a weight W (D x n, the papers' layout) is

    W* = W + AO(q_down) diag(l) AO(q_up)^T

and a vector passes through it in O(D + n + d) without either projection being formed. q_0 = -1 is a pole of the
formula: 1 + q_0 is held at least ``POLE`` away from zero, so the result is finite, with no gradient through it there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orthotune.ops import plan
from orthotune.ops.cpu import kernels
from orthotune.ops.cuda import usable
from orthotune.ops.precision import full_precision
from orthotune.ops.tensors import as_rows, contiguous_like

POLE = 1e-6


def _inverse_pivot(q: Tensor) -> Tensor:
    """Return 1 / (1 + q_0), finite everywhere, a 0-d tensor."""
    pivot = 1 + q[0]
    return 1 / torch.where(pivot.abs() < POLE, torch.where(pivot < 0, -POLE, POLE).to(pivot.dtype), pivot)


def _pivot_gradient(q: Tensor, inverse: Tensor) -> Tensor:
    """Return d inverse / d q_0: -inverse^2 away from the pole, zero where the guard holds."""
    return torch.where((1 + q[0]).abs() < POLE, torch.zeros_like(inverse), -inverse.square())


def dense(q: Tensor, rank: int) -> Tensor:
    """Return AO(q) as an explicit (N, d) matrix from q (N,): for tests, convolutions and people."""
    _check_rank(q, rank)
    tail = q[1:]
    right = torch.eye(len(tail), rank - 1, dtype=q.dtype, device=q.device)
    right = right - torch.outer(tail, tail[: rank - 1]) * _inverse_pivot(q)
    return torch.cat([q[:, None], torch.cat([-tail[None, : rank - 1], right])], dim=1)


def project(x: Tensor, q: Tensor, rank: int) -> Tensor:
    """Return ``x AO(q)``, (..., d), for x (..., N) and q (N,), in O(N + d) a vector."""
    _check_rank(q, rank)
    tail_sum = x[..., 1:] @ q[1:]
    first = x[..., 0] * q[0] + tail_sum
    slope = x[..., 0] + tail_sum * _inverse_pivot(q)
    rest = x[..., 1:rank] - slope[..., None] * q[1:rank]
    return torch.cat([first[..., None], rest], dim=-1)


def expand(z: Tensor, q: Tensor) -> Tensor:
    """Return ``z AO(q)^T``, (..., N), for z (..., d) and q (N,), in O(N + d) a vector."""
    rank = z.shape[-1]
    _check_rank(q, rank)
    inner = z[..., 1:] @ q[1:rank]
    slope = z[..., 0] - inner * _inverse_pivot(q)
    y = torch.cat([(z[..., 0] * q[0] - inner)[..., None], slope[..., None] * q[1:]], dim=-1)
    y[..., 1:rank] += z[..., 1:]
    return y


def update(down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """Return (AO(down) diag(scale) AO(up)^T)^T, the update of a weight (n, D) in torch's layout; differentiable."""
    rank = len(scale)
    return dense(up, rank) @ (scale[:, None] * dense(down, rank).T)


def defect(q: Tensor, rank: int) -> float:
    """Return max |P^T P - I| of the projection P = AO(q), (N, d): zero when ||q|| = 1."""
    matrix = dense(q, rank)
    eye = torch.eye(rank, dtype=q.dtype, device=q.device)
    return (matrix.T @ matrix - eye).abs().max().item()


def random_unit(width: int) -> Tensor:
    """Draw a start for q: uniform on the unit sphere in R^N, mirrored to q_0 >= 0, away from the pole; float32."""
    q = torch.randn(width)
    q[0] = q[0].abs()
    return q / q.norm()


def _check_rank(q: Tensor, rank: int) -> None:
    if not 1 <= rank <= len(q):
        raise ValueError(f"rank d={rank} is out of range: a projection of {len(q)} numbers has 1 <= d <= {len(q)}")


def _vector_gradient(x: Tensor, z: Tensor, q: Tensor) -> Tensor:
    """Return d <x AO(q), z> / dq, (N,), summed over the rows of x (T, N) and z (T, d)."""
    rank = z.shape[1]
    inverse = _inverse_pivot(q)
    tail_sum = x[:, 1:] @ q[1:]
    inner = z[:, 1:] @ q[1:rank]
    first = (x[:, 0] * z[:, 0]).sum() - (tail_sum * inner).sum() * _pivot_gradient(q, inverse)
    rest = x[:, 1:].T @ (z[:, 0] - inner * inverse)
    rest[: rank - 1] -= z[:, 1:].T @ (x[:, 0] + tail_sum * inverse)
    return torch.cat([first[None], rest])


def _add_rows(y: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """Return y + x AO(down) diag(scale) AO(up)^T for rows y (T, n) and x (T, D); ``y`` is used up."""
    if usable(x):
        from orthotune.ops.cuda import approx_orthogonal as cuda

        return cuda.add_update(y, x, down, up, scale)
    compiled = kernels(x) if x.dtype == y.dtype == down.dtype else None
    if compiled is not None:
        compiled.approx_orthogonal_add(y, x, down, up, scale, POLE)
        return y
    z = project(x.to(down.dtype), down, len(scale)) * scale
    return y.copy_(y + expand(z, up))


def _add_rows_backward(
    grad_x: Tensor | None, x: Tensor, grad: Tensor, down: Tensor, up: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of down, up and scale from x (T, D) and the output's gradient (T, n).

    The gradient that reaches x through the update is added to ``grad_x`` (T, D), if given, in place.
    """
    if usable(x):
        from orthotune.ops.cuda import approx_orthogonal as cuda

        return cuda.add_update_backward(grad_x, x, grad, down, up, scale)
    compiled = kernels(x) if x.dtype == grad.dtype == down.dtype else None
    if compiled is not None:
        return compiled.approx_orthogonal_backward(grad_x, x, grad, down, up, scale, POLE)
    x, grad = x.to(down.dtype), grad.to(down.dtype)
    z = project(x, down, len(scale))
    # the adjoint of expand is project, and the other way round
    grad_scaled = project(grad, up, len(scale))
    grad_z = grad_scaled * scale
    if grad_x is not None:
        grad_x += expand(grad_z, down)
    return _vector_gradient(x, grad_z, down), _vector_gradient(grad, z * scale, up), (grad_scaled * z).sum(0)


@torch.library.custom_op("orthotune::approx_orthogonal_add", mutates_args=())
def _add(y: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    with full_precision(x):
        rows = y.reshape(-1, y.shape[-1]).clone(memory_format=torch.contiguous_format)
        return _add_rows(rows, as_rows(x), *_vectors(down, up, scale)).view(y.shape)


@_add.register_fake
def _(y: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    return contiguous_like(y)[0]


@torch.library.custom_op("orthotune::approx_orthogonal_backward", mutates_args=())
def _add_backward(x: Tensor, grad: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> list[Tensor]:
    """Gradients with respect to x, down, up and scale, from x (..., D) and the output's gradient (..., n)."""
    with full_precision(x):
        grad_x = x.new_zeros(x.numel() // x.shape[-1], x.shape[-1])
        grads = _add_rows_backward(grad_x, as_rows(x), as_rows(grad), *_vectors(down, up, scale))
        return [grad_x.view(x.shape), *(g.contiguous() for g in grads)]


@_add_backward.register_fake
def _(x: Tensor, grad: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> list[Tensor]:
    return contiguous_like(x, down, up, scale)


def _vectors(down: Tensor, up: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return down.contiguous(), up.contiguous(), scale.contiguous()


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, down, up, scale = ctx.saved_tensors
    return (grad, *torch.ops.orthotune.approx_orthogonal_backward(x, grad, down, up, scale))


_add.register_autograd(_backward, setup_context=_save)


def add_update(y: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """Return ``y + x AO(down) diag(scale) AO(up)^T``; differentiable in every argument.

    Args:
        y: (..., n) the frozen layer's output.
        x: (..., D) its input.
        down: (D,), float32 or float64, the dtype the update is computed in.
        up: (n,), of the same dtype.
        scale: (d,), of the same dtype.

    Returns (..., n) in the dtype of ``y``. The backward keeps x and the three vectors alone.
    """
    return torch.ops.orthotune.approx_orthogonal_add(y, x, down, up, scale)


def _on_weight_side(x: Tensor, weight: Tensor) -> bool:
    # activations: x read, its gradient and the output each read and written; weight: read and written, twice
    return plan.on_weight_side(x, weight, x_passes=3, y_passes=2, weight_passes=4)


def _adapter(down: Tensor, up: Tensor, scale: Tensor) -> plan.Adapt:
    """Return what adds the update to rows of a weight: dense rank 4, and l on the diagonal.

    AO(q) = E + (q - e_0) e_0^T - p r^T, with E the first d columns of the identity, p_0 = 1 and p_i = q_i / (1 + q_0),
    r_0 = 0 and r_j = q_j; multiplied out, everything but E diag(l) E^T has one of four vectors on either side.
    """
    rank = len(scale)
    compiled = kernels(down)
    if compiled is not None:

        def adapt_compiled(part: Tensor, rows: slice) -> Tensor:
            part = part.to(down.dtype).contiguous()
            result = torch.empty_like(part)
            compiled.approx_orthogonal_weight(part, down, up, scale, POLE, rows.start, result)
            return result

        return adapt_compiled

    def parts(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest = torch.cat([q[:1] - 1, q[1:]])
        pole = torch.cat([torch.ones_like(q[:1]), q[1:] * _inverse_pivot(q)])
        return rest, pole, torch.cat([torch.zeros_like(q[:1]), q[1:rank]])

    (rest_down, pole_down, row_down), (rest_up, pole_up, row_up) = parts(down), parts(up)
    first = torch.zeros_like(up)
    first[0] = scale[0]
    left = torch.stack([first, -F.pad(scale * row_down, (0, len(up) - rank)), rest_up, -pole_up], dim=1)
    right = torch.stack([rest_down, pole_down, scale[0] * down, expand(scale * row_up, down)])

    def adapt(part: Tensor, rows: slice) -> Tensor:
        result = torch.addmm(part.to(left.dtype), left[rows], right)
        diagonal = scale[rows]
        result.diagonal(rows.start)[: len(diagonal)] += diagonal
        return result.to(part.dtype)

    return adapt


@torch.library.custom_op("orthotune::approx_orthogonal_linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    with full_precision(x):
        rows, vectors = as_rows(x), _vectors(down, up, scale)
        if _on_weight_side(rows, weight):
            y = plan.linear(rows, weight, bias, _adapter(*vectors))
        else:
            y = _add_rows(F.linear(rows, weight, bias), rows, *vectors)
        return y.view(*x.shape[:-1], len(weight))


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("orthotune::approx_orthogonal_linear_backward", mutates_args=())
def _linear_backward(x: Tensor, grad: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> list[Tensor]:
    """Gradients with respect to x, down, up and scale."""
    with full_precision(x):
        rows, grad, vectors = as_rows(x), as_rows(grad), _vectors(down, up, scale)
        if _on_weight_side(rows, weight):
            grad_x = plan.linear_gradient(grad, weight, _adapter(*vectors))
            grads = _add_rows_backward(None, rows, grad, *vectors)
        else:
            grad_x = grad @ weight
            grads = _add_rows_backward(grad_x, rows, grad, *vectors)
        return [grad_x.view(x.shape), *(g.contiguous() for g in grads)]


@_linear_backward.register_fake
def _(x: Tensor, grad: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> list[Tensor]:
    return contiguous_like(x, down, up, scale)


def _save_linear(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _bias, *vectors = inputs
    ctx.save_for_backward(x, weight, *vectors)


def _backward_linear(ctx: Any, grad: Tensor) -> Any:
    x, weight, *vectors = ctx.saved_tensors
    plan.check_frozen(ctx.needs_input_grad[1])
    grads = torch.ops.orthotune.approx_orthogonal_linear_backward(x, grad, weight, *vectors)
    grad_bias = plan.bias_gradient(grad) if ctx.needs_input_grad[2] else None
    return grads[0], None, grad_bias, *grads[1:]


_linear.register_autograd(_backward_linear, setup_context=_save_linear)


def linear_with_update(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: Tensor
) -> Tensor:
    """Return ``x (W + AO(down) diag(scale) AO(up)^T) + bias``, (..., n), for a frozen ``weight`` (n, D).

    ``x``, ``weight`` and ``bias`` share a dtype; down (D,), up (n,) and scale (d,) are float32 or float64. The update
    is added to the output or, where that moves fewer numbers, to the weight. Differentiable in all but the weight; the
    backward keeps x alone.
    """
    return torch.ops.orthotune.approx_orthogonal_linear(x, weight, bias, down, up, scale)
