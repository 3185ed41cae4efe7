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
from functools import lru_cache

import torch
from torch import Tensor

from orthotune.ops.precision import compute_dtype
from orthotune.ops.rotation import rotate


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


def apply(x: Tensor, rotations: Tensor, *, num_trees: int = 1, transpose: bool = False) -> Tensor:
    """Return ``x R`` (or ``x R^T``), with R the product of ``num_trees`` trees; differentiable in both arguments.

    Args:
        x: (..., D) activations, or the rows of a weight (n, D).
        rotations: 2x2 blocks (num_trees * (D - 1), 2, 2), or angles in radians (num_trees * (D - 1),); float32 or
            float64. Half-precision ones are computed in float32.
        num_trees: with more than one, tree t acts on the coordinates permuted t times by :func:`permutation`:
            R = T_0 (Q T_1 Q^T) (Q^2 T_2 Q^-2) ... A single tree is the paper's method.
        transpose: apply R^T, which turns a weight in (out, in) layout into the merged one: W (out, in) -> W R^T.

    Returns (..., D) in the dtype of ``x``. Half-precision ``x`` is rotated in float32 and rounded once.
    Raises ValueError if D is 1, which leaves nothing to rotate, or ``rotations`` does not fit D.
    """
    width = x.shape[-1]
    if width < 2:
        raise ValueError(f"a rotation needs at least 2 coordinates, got width={width}")
    count = num_trees * num_rotations(width)
    if rotations.shape not in ((count, 2, 2), (count,)):
        raise ValueError(
            f"rotations of shape {tuple(rotations.shape)} do not fit: {num_trees} tree(s) over width {width} take "
            f"({count}, 2, 2) blocks or ({count},) angles"
        )
    rotations = rotations.to(compute_dtype(rotations.dtype))
    trees = rotations.unflatten(0, (num_trees, -1)) if num_trees > 1 else rotations[None]
    order = range(num_trees)
    for tree in reversed(order) if transpose else order:
        if tree == 0:
            x = rotate(x, trees[tree], transpose)
        else:
            shuffle = _power(permutation(width, x.device), tree)
            x = rotate(x[..., shuffle], trees[tree], transpose)[..., shuffle.argsort()]
    return x


def _power(shuffle: Tensor, exponent: int) -> Tensor:
    result = shuffle
    for _ in range(exponent - 1):
        result = result[shuffle]
    return result


def dense(rotations: Tensor, width: int, *, num_trees: int = 1) -> Tensor:
    """Return R as an explicit (D, D) matrix: for tests and for people, never for a forward pass."""
    eye = torch.eye(width, dtype=rotations.dtype, device=rotations.device)
    return apply(eye, rotations, num_trees=num_trees)


def defect(rotations: Tensor, width: int, *, num_trees: int = 1, chunk: int = 1024) -> float:
    """Return max |R^T R - I| in the dtype of ``rotations``, over ``chunk`` rows at a time: O(chunk * D) memory."""
    worst = 0.0
    for start in range(0, width, chunk):
        stop = min(start + chunk, width)
        rows = torch.zeros(stop - start, width, dtype=rotations.dtype, device=rotations.device)
        rows[torch.arange(stop - start), torch.arange(start, stop)] = 1
        gram = apply(apply(rows, rotations, num_trees=num_trees, transpose=True), rotations, num_trees=num_trees)
        worst = max(worst, (gram - rows).abs().max().item())
    return worst


def penalty(blocks: Tensor) -> Tensor:
    """Return sum over rotations of <(a1, a2), (b1, b2)>^2, a scalar: qGOFT's soft orthogonality (eq. 8 of the paper).

    It is zero when every block has orthogonal columns; the columns' norms are left free.
    """
    return (blocks[..., 0] * blocks[..., 1]).sum(dim=-1).square().sum()
