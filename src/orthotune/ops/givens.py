"""The tree of plane rotations of GOFT and qGOFT, as an operator on row vectors.

Source: Ma et al., "Parameter Efficient Quasi-Orthogonal Fine-Tuning via Givens Rotation", ICML 2024
(arXiv 2404.04316). For D coordinates the tree has D - 1 rotations in ceil(log2 D) rounds; round r pairs the
coordinates that are multiples of 2^(r-1), two by two, and an odd one out passes to the next round. With P_r the
rotations of round r (each a 2x2 block ``[[a1, b1], [a2, b2]]`` on rows and columns (i, j)),

    R = P_L ... P_2 P_1,        W* = R W,        x W* = (x R) W.

``R`` has D x D entries but is never formed: one vector costs O(D) work, and a backward pass needs the input alone.

Rotations are given as blocks (trees * (D - 1), 2, 2) or as angles (trees * (D - 1),), of which the block is
``[[cos t, -sin t], [sin t, cos t]]``; stored tree by tree, round by round, from the first coordinate up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from orthotune.ops.precision import compute_dtype
from orthotune.ops.rotation import as_blocks, rotate

Layout = Sequence[tuple[int, bool]]
"""Of each tree in a product: how many times the coordinates are permuted before it, and whether it is transposed."""

SHORT = 1e-12  # a column shorter than this has no direction that can be told from rounding


def num_rotations(width: int) -> int:
    """Rotations in one tree over ``width`` coordinates: width - 1."""
    return width - 1


def identity_blocks(count: int) -> Tensor:
    """Return the start of qGOFT: ``count`` identity blocks, (count, 2, 2), float32."""
    return torch.eye(2).repeat(count, 1, 1)


def permutation(width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the fixed permutation between two trees: coordinate j goes to (j * step) mod width, (width,), int64.

    ``step`` is the number coprime to ``width`` nearest to width / golden ratio, which carries neighbours far apart.
    The rule is arithmetic, so that a checkpoint means the same on every machine.
    """
    return (torch.arange(width, device=device) * _step(width)) % width


@lru_cache(maxsize=256)
def _step(width: int) -> int:
    golden = width * (math.sqrt(5) - 1) / 2
    return min((s for s in range(1, width + 1) if math.gcd(s, width) == 1), key=lambda s: abs(s - golden))


def apply(
    x: Tensor, rotations: Tensor, *, num_trees: int = 1, layout: Layout | None = None, transpose: bool = False
) -> Tensor:
    """Return ``x R`` (or ``x R^T``), with R the product of ``num_trees`` trees; differentiable in both arguments.

    Args:
        x: (..., D) activations, or the rows of a weight (n, D).
        rotations: 2x2 blocks (num_trees * (D - 1), 2, 2), or angles in radians (num_trees * (D - 1),); float32 or
            float64. Half-precision ones are computed in float32.
        num_trees: with more than one, tree t acts on the coordinates permuted t times by :func:`permutation`:
            R = T_0 (Q T_1 Q^T) (Q^2 T_2 Q^-2) ... A single tree is the paper's method.
        layout: in place of ``num_trees``, a pair (p, transposed) for each tree, whose factor in R is Q^p T Q^-p, or
            Q^p T^T Q^-p; by default (0, False), (1, False), ...
        transpose: apply R^T, which turns a weight in (out, in) layout into the merged one: W (out, in) -> W R^T.

    Returns (..., D) in the dtype of ``x``. Half-precision ``x`` is rotated in float32 and rounded once.
    Raises ValueError if D is 1, which leaves nothing to rotate, or ``rotations`` does not fit D.
    """
    width = x.shape[-1]
    if width < 2:
        raise ValueError(f"a rotation needs at least 2 coordinates, got width={width}")
    if layout is None:
        layout = [(tree, False) for tree in range(num_trees)]
    count = len(layout) * num_rotations(width)
    if rotations.shape not in ((count, 2, 2), (count,)):
        raise ValueError(
            f"rotations of shape {tuple(rotations.shape)} do not fit: {len(layout)} tree(s) over width {width} take "
            f"({count}, 2, 2) blocks or ({count},) angles"
        )
    rotations = rotations.to(compute_dtype(rotations.dtype))
    trees = rotations.unflatten(0, (len(layout), -1)) if len(layout) > 1 else rotations[None]
    order = range(len(layout))
    for tree in reversed(order) if transpose else order:
        power, transposed = layout[tree]
        if power == 0:
            x = rotate(x, trees[tree], transpose != transposed)
        else:
            shuffle = _power(permutation(width, x.device), power)
            x = rotate(x[..., shuffle], trees[tree], transpose != transposed)[..., shuffle.argsort()]
    return x


def _power(shuffle: Tensor, exponent: int) -> Tensor:
    result = shuffle
    for _ in range(exponent - 1):
        result = result[shuffle]
    return result


def dense(rotations: Tensor, width: int, *, num_trees: int = 1, layout: Layout | None = None) -> Tensor:
    """Return R as an explicit (D, D) matrix: for tests and for people, never for a forward pass."""
    eye = torch.eye(width, dtype=rotations.dtype, device=rotations.device)
    return apply(eye, rotations, num_trees=num_trees, layout=layout)


def defect(
    rotations: Tensor, width: int, *, num_trees: int = 1, layout: Layout | None = None, chunk: int = 1024
) -> float:
    """Return max |R^T R - I| in the dtype of ``rotations``, over ``chunk`` rows at a time: O(chunk * D) memory."""
    worst = 0.0
    for start in range(0, width, chunk):
        stop = min(start + chunk, width)
        rows = torch.zeros(stop - start, width, dtype=rotations.dtype, device=rotations.device)
        rows[torch.arange(stop - start), torch.arange(start, stop)] = 1
        turned = apply(rows, rotations, num_trees=num_trees, layout=layout, transpose=True)
        gram = apply(turned, rotations, num_trees=num_trees, layout=layout)
        worst = max(worst, (gram - rows).abs().max().item())
    return worst


def penalty(blocks: Tensor) -> Tensor:
    """Return sum over rotations of <(a1, a2), (b1, b2)>^2, a scalar: qGOFT's soft orthogonality (eq. 8 of the paper).

    It is zero when every block has orthogonal columns; the columns' norms are left free.
    """
    return (blocks[..., 0] * blocks[..., 1]).sum(dim=-1).square().sum()


def hold(blocks: Tensor, freeze: Literal["norm", "angle"] | None) -> Tensor:
    """Return the blocks (..., 2, 2) that stored ones stand for when part of what qGOFT frees is held; differentiable.

    With the stored columns a and b, the identity among what each case can reach:

    * "norm": [a / |a|, b / |b|], so that only directions, and the angle between the columns, are free;
    * "angle": [a, |b| J a / |a|], J the rotation by +90 degrees: columns that are orthogonal, of free norms.

    A column shorter than ``SHORT`` counts as pointing along its own axis, and takes no gradient.
    """
    if freeze is None:
        return blocks
    first, second = blocks.unbind(-1)
    direction = _direction(first, 0)
    if freeze == "norm":
        return torch.stack([direction, _direction(second, 1)], dim=-1)
    squared = second.square().sum(-1, keepdim=True)
    short = squared < SHORT**2
    norm = torch.where(short, 0, squared.where(~short, 1).sqrt())
    return torch.stack([first, norm * torch.stack([-direction[..., 1], direction[..., 0]], dim=-1)], dim=-1)


def _direction(column: Tensor, axis: int) -> Tensor:
    """Return unit vectors along ``column`` (..., 2); along the coordinate ``axis`` where the column is too short."""
    squared = column.square().sum(-1, keepdim=True)
    short = squared < SHORT**2
    own = torch.zeros_like(column)
    own[..., axis] = 1
    return torch.where(short, own, column / squared.where(~short, 1).sqrt())


def inverse_transpose(blocks: Tensor) -> Tensor:
    """Return B^-T of each block (..., 2, 2): a tree of these, transposed, is the inverse of the tree of ``blocks``.

    Infinite or NaN where a block is singular. Where the columns of B are orthogonal, those of B^-T are too.
    """
    (a1, b1), (a2, b2) = (row.unbind(-1) for row in blocks.unbind(-2))
    adjugate = torch.stack([torch.stack([b2, -a2], dim=-1), torch.stack([-b1, a1], dim=-1)], dim=-2)
    return adjugate / (a1 * b2 - b1 * a2)[..., None, None]


def polar(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the angle t (...) in radians and log P (..., 2, 2) of each block's polar form, B = rotation(t) P.

    P is symmetric and positive definite, so B has to have det B > 0; otherwise entries are not finite.
    """
    angle = torch.atan2(blocks[..., 1, 0] - blocks[..., 0, 1], blocks[..., 0, 0] + blocks[..., 1, 1])
    stretch = as_blocks(-angle.flatten()).view(blocks.shape) @ blocks
    eye = torch.eye(2, dtype=blocks.dtype, device=blocks.device)
    mean = (stretch[..., 0, 0] + stretch[..., 1, 1]) / 2
    rest = stretch - mean[..., None, None] * eye
    # rest^2 = radius^2 I, so that log P = log(det P) / 2 I + atanh(radius / mean) / radius rest
    radius = torch.hypot(rest[..., 0, 0], rest[..., 0, 1])
    slope = torch.where(radius == 0, 1 / mean, torch.atanh(radius / mean) / radius)
    log_det = (mean.square() - radius.square()).log()
    return angle, log_det[..., None, None] / 2 * eye + slope[..., None, None] * rest


def from_polar(angle: Tensor, log_stretch: Tensor) -> Tensor:
    """Return the blocks (..., 2, 2) with this polar form: inverse of :func:`polar`."""
    return as_blocks(angle.flatten()).view(*angle.shape, 2, 2) @ torch.linalg.matrix_exp(log_stretch)
