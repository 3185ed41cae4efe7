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

import torch
from torch import Tensor

from orthotune.ops.precision import full_precision

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


@torch.library.custom_op("orthotune::approx_orthogonal_add", mutates_args=())
def _add(y: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    with full_precision(x):
        rank = len(scale)
        z = project(x.reshape(-1, x.shape[-1]).to(down.dtype), down, rank) * scale
        return (y + expand(z, up).to(y.dtype).reshape(y.shape)).contiguous()


@_add.register_fake
def _(y: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


@torch.library.custom_op("orthotune::approx_orthogonal_backward", mutates_args=())
def _add_backward(x: Tensor, grad: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> list[Tensor]:
    """Gradients with respect to x, down, up and scale, from x (..., D) and the output's gradient (..., n)."""
    with full_precision(x):
        rank = len(scale)
        flat = x.reshape(-1, x.shape[-1]).to(down.dtype)
        grad = grad.reshape(-1, grad.shape[-1]).to(down.dtype)
        z = project(flat, down, rank)
        # the adjoint of expand is project, and the other way round
        grad_scaled = project(grad, up, rank)
        grad_z = grad_scaled * scale
        grad_x = expand(grad_z, down).to(x.dtype).reshape(x.shape)
        grad_down = _vector_gradient(flat, grad_z, down)
        grad_up = _vector_gradient(grad, z * scale, up)
        return [grad_x.contiguous(), grad_down, grad_up, (grad_scaled * z).sum(0)]


@_add_backward.register_fake
def _(x: Tensor, grad: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, down, up, scale)]


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


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
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
