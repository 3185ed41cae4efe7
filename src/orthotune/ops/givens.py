"""The tree of plane rotations of GOFT and qGOFT, as an operator on row vectors.

Source: Ma et al., "Parameter Efficient Quasi-Orthogonal Fine-Tuning via Givens Rotation", ICML 2024
(arXiv 2404.04316). For D coordinates the tree has D - 1 rotations in ceil(log2 D) rounds; round r pairs the
coordinates that are multiples of 2^(r-1), two by two, and an odd one out passes to the next round. With P_r the
rotations of round r (each a 2x2 block ``[[a1, b1], [a2, b2]]`` on rows and columns (i, j)),

    R = P_L ... P_2 P_1,        W* = R W,        x W* = (x R) W.

``R`` has D x D entries but is never formed. Its rounds are grouped into *stages*: the first five rounds stay inside
blocks of 32 neighbouring coordinates, so they are one batched product with (D / 32) matrices of 32 x 32; every later
round touches the first coordinate of each block alone, so the rest is the same problem on D / 32 coordinates.
One vector costs O(D) work, and a backward pass needs the input alone.

Shapes: ``blocks`` is (trees * (D - 1), 2, 2), stored tree by tree, round by round, from the first coordinate up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from orthotune.ops.rotation import rotate

BLOCK_ROUNDS = 5  # rounds of a blocked stage: blocks of 2^5 = 32 coordinates were the fastest on a CPU
DENSE_WIDTH = 128  # at or below this many coordinates, the remaining rounds are one small dense matrix


def num_rotations(width: int) -> int:
    """Rotations in one tree over ``width`` coordinates: width - 1."""
    return width - 1


def rounds(width: int) -> Iterator[tuple[int, int, int]]:
    """Yield ``(stride, first rotation, number of pairs)`` of each round of one tree, round 1 (stride 1) first.

    Pair ``k`` of a round is the rotation ``first + k`` and acts on coordinates ``(2k * stride, (2k + 1) * stride)``.
    """
    stride, count, first = 1, width, 0
    while count > 1:
        pairs = count // 2
        yield stride, first, pairs
        first += pairs
        count = pairs + count % 2
        stride *= 2


@dataclass(frozen=True)
class Stage:
    """A group of consecutive rounds: ``blocks`` matrices of ``size`` x ``size`` on every ``stride``-th coordinate."""

    size: int
    blocks: int
    width: int  # coordinates the stage acts on; blocks * size, less the padding
    pairs: tuple[tuple[int, int], ...]  # of each round: first rotation, number of pairs


@lru_cache(maxsize=256)
def stages(width: int) -> tuple[Stage, ...]:
    """Group the rounds of a tree over ``width`` coordinates into stages, the finest (stride 1) first.

    Raises ValueError if ``width < 2``: one coordinate has nothing to rotate.
    """
    if width < 2:
        raise ValueError(f"a rotation needs at least 2 coordinates, got width={width}")
    todo = [(first, pairs) for _, first, pairs in rounds(width)]
    found = []
    count = width
    while todo:
        depth = len(todo) if count <= DENSE_WIDTH else BLOCK_ROUNDS
        size = 2**depth
        blocks = -(-count // size)
        found.append(Stage(size, blocks, count, tuple(todo[:depth])))
        todo = todo[depth:]
        count = blocks
    return tuple(found)


@dataclass(frozen=True)
class _Index:
    """Where the entries of a stage's matrices come from and go to.

    ``first_row`` and ``second_row`` (rounds, blocks * size) index the flattened 2x2 blocks (the identity is appended
    at the end) for the entry by which a coordinate is reached from its pair's first or second member; ``position``
    (rounds + 1, blocks * size) says where each product of such entries stands in the stage's matrices.
    """

    first_row: Tensor
    second_row: Tensor
    position: Tensor


@lru_cache(maxsize=512)
def _indices(width: int, device: torch.device) -> tuple[_Index, ...]:
    """Return the index tensors of each stage.

    Only the operators' own kernels call this: under torch.compile or on the meta device the tensors would be fakes,
    and a later call would find them in the cache.
    """
    return tuple(_index(stage, num_rotations(width), device) for stage in stages(width))


def _index(stage: Stage, identity: int, device: torch.device) -> _Index:
    leaf = torch.arange(stage.blocks * stage.size, device="cpu")
    local = leaf % stage.size
    first_row, second_row, position = [], [], []
    for level, (first, pairs) in enumerate(stage.pairs, start=1):
        node = leaf >> level
        rotation = torch.where(node < pairs, first + node, identity)
        column = (leaf >> (level - 1)) & 1
        first_row.append(4 * rotation + column)
        second_row.append(4 * rotation + 2 + column)
        # the second member of the pair above this leaf: the row that enters the tree at this level
        position.append(((local >> level) << level) + 2 ** (level - 1))
    position.append(torch.zeros_like(leaf))
    place = (leaf // stage.size) * stage.size**2 + torch.stack(position) * stage.size + local
    return _Index(torch.stack(first_row).to(device), torch.stack(second_row).to(device), place.to(device))


@torch.library.custom_op("orthotune::stage_matrices", mutates_args=())
def _stage_matrices(blocks: Tensor, width: int) -> list[Tensor]:
    entries = _entries(blocks)
    matrices = []
    for stage, index in zip(stages(width), _indices(width, blocks.device), strict=True):
        products = []
        path = None
        for down, across in _walk(entries, index):
            products.append(across if path is None else path * across)
            path = down if path is None else path * down
        assert path is not None
        flat = entries.new_zeros(stage.blocks * stage.size * stage.size)
        flat[index.position.reshape(-1)] = torch.cat([*products, path])
        matrices.append(_cut(flat.view(stage.blocks, stage.size, stage.size), stage))
    return matrices


@_stage_matrices.register_fake
def _(blocks: Tensor, width: int) -> list[Tensor]:
    return [_cut(blocks.new_empty(s.blocks, s.size, s.size), s) for s in stages(width)]


@torch.library.custom_op("orthotune::stage_matrices_backward", mutates_args=())
def _stage_matrices_backward(blocks: Tensor, grads: list[Tensor], width: int) -> Tensor:
    entries = _entries(blocks)
    grad_entries = torch.zeros_like(entries)
    for stage, index, grad in zip(stages(width), _indices(width, blocks.device), grads, strict=True):
        padding = stage.size - grad.shape[1]
        flat = F.pad(grad, (0, padding, 0, padding)).reshape(-1)
        *grad_products, grad_path = flat[index.position]
        walk = list(_walk(entries, index))
        paths = [torch.ones_like(grad_path)]
        for down, _across in walk[:-1]:
            paths.append(paths[-1] * down)
        grad_down = []
        for path, product, (down, across) in zip(reversed(paths), reversed(grad_products), reversed(walk), strict=True):
            grad_down.append(path * grad_path)
            grad_path = grad_path * down + product * across
        grad_across = torch.stack(paths) * torch.stack(grad_products)
        grad_entries.index_add_(0, index.first_row.reshape(-1), torch.cat(grad_down[::-1]))
        grad_entries.index_add_(0, index.second_row.reshape(-1), grad_across.reshape(-1))
    return grad_entries[:-4].reshape(blocks.shape)


@_stage_matrices_backward.register_fake
def _(blocks: Tensor, grads: list[Tensor], width: int) -> Tensor:
    return torch.empty_like(blocks, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    blocks, ctx.width = inputs
    ctx.save_for_backward(blocks)


def _backward(ctx, grads):  # type: ignore[no-untyped-def]
    (blocks,) = ctx.saved_tensors
    return torch.ops.orthotune.stage_matrices_backward(blocks, grads, ctx.width), None


_stage_matrices.register_autograd(_backward, setup_context=_save)


def _entries(blocks: Tensor) -> Tensor:
    """Flatten the 2x2 blocks and append the identity, which stands where the tree has no rotation."""
    identity = torch.eye(2, dtype=blocks.dtype, device=blocks.device)
    return torch.cat([blocks.reshape(-1), identity.reshape(-1)])


def _walk(entries: Tensor, index: _Index) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield per level, finest first, the entry that reaches each coordinate from its pair's first and second."""
    yield from zip(entries[index.first_row], entries[index.second_row], strict=True)


def _cut(matrix: Tensor, stage: Stage) -> Tensor:
    """Cut a single matrix to the coordinates it has; blocks keep their padding."""
    return matrix[:, : stage.width, : stage.width].contiguous() if stage.blocks == 1 else matrix


def stage_matrices(blocks: Tensor, width: int) -> list[Tensor]:
    """Multiply the rotations of one tree out into the matrices of its stages; differentiable.

    ``blocks`` is (width - 1, 2, 2). Returns one (blocks, size, size) tensor per stage, the finest first; the last,
    a single matrix, is cut to the coordinates it has. An entry is a product along one path of the tree:
    down through first members of pairs, across once from the second member where its row enters the tree.
    """
    return torch.ops.orthotune.stage_matrices(blocks, width)


def rotation_blocks(theta: Tensor) -> Tensor:
    """Turn angles (radians), any shape (*,), into 2x2 rotations ``[[cos t, -sin t], [sin t, cos t]]``, (*, 2, 2)."""
    cos, sin = theta.cos(), theta.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))


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


def apply(x: Tensor, blocks: Tensor, *, num_trees: int = 1, transpose: bool = False) -> Tensor:
    """Return ``x R`` (or ``x R^T``), with R the product of ``num_trees`` trees; differentiable in both arguments.

    Args:
        x: (..., D) activations, or the rows of a weight (n, D).
        blocks: (num_trees * (D - 1), 2, 2); float32 or float64. Half-precision blocks are computed in float32.
        num_trees: with more than one, tree t acts on the coordinates permuted t times by :func:`permutation`:
            R = T_0 (Q T_1 Q^T) (Q^2 T_2 Q^-2) ... A single tree is the paper's method.
        transpose: apply R^T, which turns a weight in (out, in) layout into the merged one: W (out, in) -> W R^T.

    Returns (..., D) in the dtype of ``x``. Half-precision ``x`` is rotated in float32 and rounded once.
    Raises ValueError if ``blocks`` does not fit D.
    """
    width = x.shape[-1]
    if blocks.shape != (num_trees * num_rotations(width), 2, 2):
        raise ValueError(
            f"blocks of shape {tuple(blocks.shape)} do not fit: {num_trees} tree(s) over width {width} take "
            f"({num_trees * num_rotations(width)}, 2, 2)"
        )
    blocks = blocks.float() if blocks.dtype in (torch.float16, torch.bfloat16) else blocks
    trees = blocks.view(num_trees, num_rotations(width), 2, 2)
    order = range(num_trees)
    for tree in reversed(order) if transpose else order:
        matrices = stage_matrices(trees[tree], width)
        if tree == 0:
            x = rotate(x, matrices, transpose)
        else:
            shuffle = _power(permutation(width, x.device), tree)
            x = rotate(x[..., shuffle], matrices, transpose)[..., shuffle.argsort()]
    return x


def _power(shuffle: Tensor, exponent: int) -> Tensor:
    result = shuffle
    for _ in range(exponent - 1):
        result = result[shuffle]
    return result


def dense(blocks: Tensor, width: int, *, num_trees: int = 1) -> Tensor:
    """Return R as an explicit (D, D) matrix: for tests and for people, never for a forward pass."""
    eye = torch.eye(width, dtype=blocks.dtype, device=blocks.device)
    return apply(eye, blocks, num_trees=num_trees)


def defect(blocks: Tensor, width: int, *, num_trees: int = 1, chunk: int = 1024) -> float:
    """Return max |R^T R - I| in the dtype of ``blocks``, over ``chunk`` rows at a time: O(chunk * D) memory."""
    worst = 0.0
    for start in range(0, width, chunk):
        stop = min(start + chunk, width)
        rows = torch.zeros(stop - start, width, dtype=blocks.dtype, device=blocks.device)
        rows[torch.arange(stop - start), torch.arange(start, stop)] = 1
        gram = apply(apply(rows, blocks, num_trees=num_trees, transpose=True), blocks, num_trees=num_trees)
        worst = max(worst, (gram - rows).abs().max().item())
    return worst


def penalty(blocks: Tensor) -> Tensor:
    """Return sum over rotations of <(a1, a2), (b1, b2)>^2, a scalar: qGOFT's soft orthogonality (eq. 8 of the paper).

    It is zero when every block has orthogonal columns; the columns' norms are left free.
    """
    return (blocks[..., 0] * blocks[..., 1]).sum(dim=-1).square().sum()
