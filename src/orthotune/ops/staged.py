"""The rotation in PyTorch: the rounds of the tree grouped into stages, each a batched matrix product.

The first rounds stay inside blocks of k neighbouring coordinates, so they multiply out to one k x k matrix a block;
every later round touches the first coordinate of each block alone, so the rest is the same problem on D / k numbers.
As x sees it, coarse comes before fine:

    x R:     x[:, ::k] <- x[:, ::k] R_coarse;   x <- each block times its matrix
    x R^T:   x <- each block times its matrix transposed;   x[:, ::k] <- x[:, ::k] R_coarse^T
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ROUNDS = 5  # rounds of a blocked stage: blocks of 2^5 = 32 coordinates were the fastest on a CPU
DENSE_WIDTH = 128  # at or below this many coordinates, the remaining rounds are one small dense matrix
CHUNK = 2**18  # numbers of x worked on at a time: a chunk and its copies stay in a core's cache


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
    """Group the rounds of a tree over ``width`` >= 2 coordinates into stages, the finest (stride 1) first."""
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


def matrices(blocks: Tensor, width: int) -> list[Tensor]:
    """Multiply the rotations of one tree, ``blocks`` (width - 1, 2, 2), out into the matrices of its stages.

    Returns one (blocks, size, size) tensor per stage, the finest first; the last, a single matrix, is cut to the
    coordinates it has. A round changes the first row of each half of a node: the upper one goes on to the next
    round, the lower one is final.
    """
    result = []
    for stage in stages(width):
        matrix = blocks.new_zeros(stage.blocks, stage.size, stage.size)
        row = blocks.new_ones(stage.blocks * stage.size, 1)
        for level, pair in enumerate(_rotations(blocks, stage)):
            row = row.view(len(pair), 2, 2**level)
            _lower_rows(matrix, level).copy_((row * pair[:, 1, :, None]).view(stage.blocks, -1, 2 ** (level + 1)))
            row = (row * pair[:, 0, :, None]).flatten(1)
        matrix[:, 0] = row.view(stage.blocks, stage.size)
        result.append(matrix[:, : stage.width, : stage.width].contiguous() if stage.blocks == 1 else matrix)
    return result


def matrices_backward(blocks: Tensor, grads: Sequence[Tensor], width: int) -> Tensor:
    """Return the gradient of ``blocks`` from those of :func:`matrices`."""
    grad_blocks = torch.zeros_like(blocks, memory_format=torch.contiguous_format)
    for stage, grad in zip(stages(width), grads, strict=True):
        padding = stage.size - grad.shape[1]
        grad = F.pad(grad, (0, padding, 0, padding))
        pairs = list(_rotations(blocks, stage))
        rows = [blocks.new_ones(stage.blocks * stage.size, 1)]
        for level, pair in enumerate(pairs[:-1]):
            rows.append((rows[-1].view(len(pair), 2, 2**level) * pair[:, 0, :, None]).flatten(1))
        grad_upper = grad[:, 0].reshape(-1)
        for level in reversed(range(len(pairs))):
            pair, shape = pairs[level], (len(pairs[level]), 2, 2**level)
            row, grad_upper = rows[level].view(shape), grad_upper.view(shape)
            grad_lower = _lower_rows(grad, level).reshape(shape)
            first, count = stage.pairs[level]
            for member, grad_row in enumerate((grad_upper, grad_lower)):
                grad_blocks[first : first + count, member] = (grad_row * row).sum(-1)[:count]
            grad_upper = grad_upper * pair[:, 0, :, None] + grad_lower * pair[:, 1, :, None]
    return grad_blocks


def _rotations(blocks: Tensor, stage: Stage) -> Iterator[Tensor]:
    """Yield the 2x2 blocks of each round of a stage, (nodes, 2, 2), the identity where a node has no rotation."""
    for level, (first, pairs) in enumerate(stage.pairs, start=1):
        rotations = blocks[first : first + pairs]
        missing = stage.blocks * stage.size // 2**level - pairs
        if missing:
            identity = torch.eye(2, dtype=blocks.dtype, device=blocks.device)
            rotations = torch.cat([rotations, identity.expand(missing, 2, 2)])
        yield rotations


def _lower_rows(matrix: Tensor, level: int) -> Tensor:
    """View, in (blocks, size, size), the first row of each node's lower half after a round: (blocks, nodes, width)."""
    width = 2 ** (level + 1)
    nodes = matrix.shape[1] // width
    cells = matrix.view(matrix.shape[0], nodes, width, nodes, width)
    return cells[:, :, width // 2].diagonal(dim1=1, dim2=2).mT


def rotate(x: Tensor, blocks: Tensor, transpose: bool, out: Tensor) -> None:
    """Write ``x R`` or ``x R^T`` into ``out``, both (T, D), a chunk of rows at a time."""
    staged = matrices(blocks, x.shape[1])
    for chunk in chunks(*x.shape):
        out[chunk] = _apply(x[chunk], staged, transpose)


def rotate_backward(x: Tensor, blocks: Tensor, transpose: bool, grad: Tensor) -> Tensor:
    """Turn ``grad`` (T, D), of x R or x R^T, into that of x in place; return that of ``blocks``."""
    staged = matrices(blocks, x.shape[1])
    totals = [torch.zeros_like(matrix) for matrix in staged]
    for chunk in chunks(*x.shape):
        grad[chunk], parts = _gradients(x[chunk], grad[chunk], staged, transpose)
        for total, part in zip(totals, parts, strict=True):
            total.add_(part)
    return matrices_backward(blocks, totals, x.shape[1])


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Cut ``rows`` into slices of about CHUNK numbers."""
    size = max(CHUNK // width, 16)
    yield from (slice(start, start + size) for start in range(0, rows, size))


def _as_blocks(x: Tensor, count: int, size: int) -> Tensor:
    """View (T, D) as (count, T, size), padding D with zeros up to count * size."""
    padding = count * size - x.shape[1]
    if padding:
        x = F.pad(x, (0, padding))
    return x.reshape(x.shape[0], count, size).transpose(0, 1)


def _from_blocks(y: Tensor, width: int) -> Tensor:
    """Turn (count, T, size) back into a new (T, width) tensor."""
    count, rows, size = y.shape
    return y.transpose(0, 1).reshape(rows, count * size)[:, :width]


def _apply(x: Tensor, matrices: Sequence[Tensor], transpose: bool) -> Tensor:
    matrix = matrices[0]
    count, size, _ = matrix.shape
    if len(matrices) == 1:
        return x @ (matrix[0].T if transpose else matrix[0])
    if transpose:
        y = _from_blocks(_as_blocks(x, count, size) @ matrix.mT, x.shape[1])
        y[:, ::size] = _apply(y[:, ::size], matrices[1:], True)
        return y
    x = x.clone()
    x[:, ::size] = _apply(x[:, ::size], matrices[1:], False)
    return _from_blocks(_as_blocks(x, count, size) @ matrix, x.shape[1])


def _gradients(x: Tensor, grad: Tensor, matrices: Sequence[Tensor], transpose: bool) -> tuple[Tensor, list[Tensor]]:
    """Gradients of :func:`_apply` with respect to x (T, D) and to each matrix."""
    matrix = matrices[0]
    count, size, _ = matrix.shape
    if len(matrices) == 1:
        if transpose:
            return grad @ matrix[0], [(grad.T @ x)[None]]
        return grad @ matrix[0].T, [(x.T @ grad)[None]]
    x_blocks = _as_blocks(x, count, size)
    if transpose:
        coarse = (x_blocks * matrix[:, None, 0]).sum(-1).T
        grad = grad.clone()
        grad_coarse, rest = _gradients(coarse, grad[:, ::size], matrices[1:], True)
        grad[:, ::size] = grad_coarse
        grad_blocks = _as_blocks(grad, count, size)
        return _from_blocks(grad_blocks @ matrix, x.shape[1]), [grad_blocks.mT @ x_blocks, *rest]
    grad_blocks = _as_blocks(grad, count, size)
    grad_x = _from_blocks(grad_blocks @ matrix.mT, x.shape[1])
    coarse_in = x[:, ::size]
    coarse_out = _apply(coarse_in, matrices[1:], False)
    grad_matrix = x_blocks.mT @ grad_blocks
    grad_matrix[:, 0] = (coarse_out.T[:, None] @ grad_blocks)[:, 0]
    grad_coarse, rest = _gradients(coarse_in, grad_x[:, ::size], matrices[1:], False)
    grad_x[:, ::size] = grad_coarse
    return grad_x, [grad_matrix, *rest]
