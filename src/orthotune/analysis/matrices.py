"""What one matrix is like, and how far another is from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from orthotune.analysis.angles import Angles, pair_angles

NOTHING = 1e-6  # of the largest singular value: a smaller one does not count in the rank of a change


@dataclass(frozen=True)
class Matrix:
    """What one matrix (out, in) is like; everything in float64.

    Attributes:
        shape: (out, in), as in torch.
        rows: angles between its rows, the weight vectors of the outputs.
        columns: angles between its columns.
        row_norm, column_norm: mean lengths of rows and columns.
        frobenius, spectral: norms ||M||_F and ||M||_2.
        defect: max |G - I|, G the Gram matrix of the vectors of which there are fewer (rows or columns): zero when
            they are orthonormal.
        singular_values: descending.
    """

    shape: tuple[int, int]
    rows: Angles
    columns: Angles
    row_norm: float
    column_norm: float
    frobenius: float
    spectral: float
    defect: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True)
class Movement:
    """How far an adapted weight W* (out, in) is from W, and in what way.

    The squared distance is the sum of two parts, exactly: with w a row and w* its successor,
    ||w* - w||^2 = (||w*|| - ||w||)^2 + ||w*|| ||w|| ||w* / ||w*|| - w / ||w|| ||^2.

    Attributes:
        relative: ||W* - W||_F / ||W||_F, the root of norm_part^2 + angle_part^2.
        norm_part: share of it by which the rows' lengths changed.
        angle_part: share of it by which the rows turned.
        turn: mean angle between a row and its successor, in degrees.
        spectral: ||W* - W||_2 / ||W||_2.
        rank: numerical rank of W* - W.
        stable_rank: ||W* - W||_F^2 / ||W* - W||_2^2; None without a change.
        bias: ||b* - b|| / ||b||; None without a bias, or where b is zero.
        directions: k of the overlaps below, min(top, out, in).
        left, right: overlap of the k leading left (right) singular vectors of W* with those of W.
        change_left, change_right: overlap of the leading singular vectors of W* - W, k or its rank, with the k leading
            ones of W; None without a change.
        singular_values: of W* - W, descending, as many as its rank.
    """

    relative: float
    norm_part: float
    angle_part: float
    turn: float
    spectral: float
    rank: int
    stable_rank: float | None
    bias: float | None
    directions: int
    left: float
    right: float
    change_left: float | None
    change_right: float | None
    singular_values: tuple[float, ...]


Svd = tuple[Tensor, Tensor, Tensor]


def svd(matrix: Tensor) -> Svd:
    """Return U (out, k), S (k,), V (in, k) of a matrix (out, in), k = min(out, in)."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u, s, vh.T


@torch.no_grad()
def describe(matrix: Tensor, singular_values: Tensor, *, limit: int = 4096, seed: int = 0) -> Matrix:
    """Describe ``matrix`` (out, in); of more than ``limit`` rows or columns, angles are those of a sample."""
    matrix = matrix.detach().double()
    few = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    gram = few @ few.T
    return Matrix(
        shape=(len(matrix), matrix.shape[1]),
        rows=pair_angles(matrix, limit=limit, seed=seed),
        columns=pair_angles(matrix.T, limit=limit, seed=seed),
        row_norm=matrix.norm(dim=1).mean().item(),
        column_norm=matrix.norm(dim=0).mean().item(),
        frobenius=matrix.norm().item(),
        spectral=singular_values[0].item(),
        defect=(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max().item(),
        singular_values=tuple(singular_values.tolist()),
    )


@torch.no_grad()
def movement(
    before: Tensor, after: Tensor, svd_before: Svd, svd_after: Svd, bias: tuple[Tensor, Tensor] | None, top: int
) -> Movement:
    """Measure how far ``after`` is from ``before``, both (out, in) float64; ``bias`` is b and b*, (out,) each.

    The overlap of two subspaces with orthonormal bases U (., i) and V (., j) is ||U^T V||_F^2 / min(i, j), from 0
    (orthogonal) to 1 (one lies in the other); Hu et al., ICLR 2022, arXiv 2106.09685, eq. 4.
    """
    change = after - before
    u, s, v = svd(change)
    rank = int((s > NOTHING * s[0]).sum()) if s[0] > 0 else 0
    k = min(top, *before.shape)
    leading = min(k, rank)
    size = before.norm()
    lengths = torch.stack([before.norm(dim=1), after.norm(dim=1)])
    units = torch.stack([before, after]) / lengths.clamp_min(torch.finfo(before.dtype).tiny)[..., None]
    difference = (units[1] - units[0]).norm(dim=1)
    turns = 2 * torch.atan2(difference, (units[1] + units[0]).norm(dim=1))
    return Movement(
        relative=_ratio(change.norm(), size),
        norm_part=_ratio((lengths[1] - lengths[0]).norm(), size),
        angle_part=_ratio((lengths[0] * lengths[1]).sqrt().mul(difference).norm(), size),
        turn=math.degrees(turns.mean().item()),
        spectral=_ratio(s[0], svd_before[1][0]),
        rank=rank,
        stable_rank=(change.norm() / s[0]).square().item() if rank else None,
        bias=_ratio((bias[1] - bias[0]).norm(), bias[0].norm()) if bias is not None and bias[0].any() else None,
        directions=k,
        left=overlap(svd_before[0][:, :k], svd_after[0][:, :k]),
        right=overlap(svd_before[2][:, :k], svd_after[2][:, :k]),
        change_left=overlap(svd_before[0][:, :k], u[:, :leading]) if rank else None,
        change_right=overlap(svd_before[2][:, :k], v[:, :leading]) if rank else None,
        singular_values=tuple(s[:rank].tolist()),
    )


def overlap(first: Tensor, second: Tensor) -> float:
    """Return the overlap of the spans of two orthonormal bases, (., i) and (., j): ||U^T V||_F^2 / min(i, j)."""
    return ((first.T @ second).square().sum() / min(first.shape[1], second.shape[1])).item()


def _ratio(part: Tensor, whole: Tensor) -> float:
    return (part / whole).item() if whole > 0 else 0.0
