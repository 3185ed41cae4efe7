"""Explicit dense float64 forms of the three methods, written from the papers' equations, slow and obvious."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = [2, 3, 5, 7, 8, 10, 31, 96, 768, 3072]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest deviation, relative to the largest entry of the reference."""
    got, want = got.double(), want.double()
    return ((got - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()


def givens_matrix(blocks: Tensor, width: int) -> Tensor:
    """R = P_L ... P_1, each round applied to the rows of the product so far; blocks (D - 1, 2, 2)."""
    matrix = torch.eye(width, dtype=blocks.dtype)
    stride, count, used = 1, width, 0
    while count > 1:
        pairs = count // 2
        i = torch.arange(pairs) * 2 * stride
        j = i + stride
        block = blocks[used : used + pairs]
        rows_i = block[:, 0, 0, None] * matrix[i] + block[:, 0, 1, None] * matrix[j]
        rows_j = block[:, 1, 0, None] * matrix[i] + block[:, 1, 1, None] * matrix[j]
        matrix = matrix.index_copy(0, i, rows_i).index_copy(0, j, rows_j)
        used += pairs
        count = pairs + count % 2
        stride *= 2
    return matrix


def rotation_blocks(theta: Tensor) -> Tensor:
    """[[cos t, -sin t], [sin t, cos t]] for each angle."""
    rows = [torch.stack([theta.cos(), -theta.sin()], -1), torch.stack([theta.sin(), theta.cos()], -1)]
    return torch.stack(rows, -2)


def held_blocks(blocks: Tensor, freeze: str) -> Tensor:
    """Blocks with columns of unit norm, or at a right angle, from the polar coordinates of the columns."""
    norms, angles = blocks.norm(dim=-2), torch.atan2(blocks[..., 1, :], blocks[..., 0, :])
    if freeze == "norm":
        norms = torch.ones_like(norms)
    else:
        angles = torch.stack([angles[..., 0], angles[..., 0] + torch.pi / 2], -1)
    return norms[..., None, :] * torch.stack([angles.cos(), angles.sin()], -2)


def approx_orthogonal_matrix(q: Tensor) -> Tensor:
    """The whole Q (N, N) that a vector q generates."""
    first_row = torch.cat([q[:1], -q[1:]])
    rest = torch.eye(len(q) - 1, dtype=q.dtype) - torch.outer(q[1:], q[1:]) / (1 + q[0])
    return torch.cat([first_row[None], torch.cat([q[1:, None], rest], dim=1)])


def goft_weight(
    weight: Tensor, blocks: Tensor, out_scale: Tensor | None = None, in_scale: Tensor | None = None
) -> Tensor:
    """R diag(s_in) W diag(s_out) in the papers' layout, given and returned in torch's (n, D)."""
    matrix = weight.T if in_scale is None else in_scale[:, None] * weight.T
    matrix = givens_matrix(blocks, weight.shape[1]) @ matrix
    return (matrix if out_scale is None else matrix * out_scale).T


def rlrr_weight(weight: Tensor, left: Tensor, right: Tensor, residual: bool = True, multiply: bool = True) -> Tensor:
    """W + (S_left S_right) (.) W, or its ablations, in torch's layout."""
    product = (left @ right).T
    if multiply:
        product = product * weight
    return weight + product if residual else product


def aoft_weight(weight: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """W + AO(q_down) diag(l) AO(q_up)^T in torch's layout."""
    rank = len(scale)
    projections = approx_orthogonal_matrix(down)[:, :rank], approx_orthogonal_matrix(up)[:, :rank]
    return weight + (projections[0] @ scale.diag() @ projections[1].T).T
