"""The tree of plane rotations of GOFT and qGOFT in one pass over the activations.

Source: Ma et al., "Parameter Efficient Quasi-Orthogonal Fine-Tuning via Givens Rotation", ICML 2024 (arXiv 2404.04316);
the tree, its storage and the meaning of ``x R`` are those of :mod:`orthotune.ops.givens`.

Every rotation retires one coordinate, the second of its pair: rotation j acts on coordinates (j - lowbit(j), j), for
j = 1 .. D - 1, in the round log2(lowbit(j)) + 1. So the 2x2 blocks are kept *by second coordinate*, a (D, 2, 2) tensor
whose entries fall in with the columns of x, and a slot without a rotation (0, or past D) holds the identity: a D that
is no power of two needs no other care.

A program is one warp. It owns a block of neighbouring columns, of which each lane holds 16 bytes (8 columns in half
precision), keeps the blocks of their rotations in registers and walks over tiles of rows. The rounds inside a lane
halve the tile (``tl.split`` and ``tl.join`` on registers), the next five exchange values between lanes (``tl.gather``,
a shuffle): nothing passes through shared memory. Later rounds act on the first coordinate of each column block alone:
the same kernel does them on that (T, D / 256) view, before the fine rounds (x R) or after them (x R^T), at a few per
cent of the traffic. Register use does not depend on D.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthotune.ops.cuda import OPTIONS, multiprocessors

LANES = tl.constexpr(32)
FORWARD_PROGRAMS = 20  # warps a multiprocessor holds at once, from the kernels' use of registers
BACKWARD_PROGRAMS = 12
BACKWARD_REGISTERS = 168  # a thread's share when 12 warps are resident


@triton.jit
def _pointers(ptr, column, width):
    """Point to the 2x2 block of the rotation whose second coordinate is ``column`` (C,): (C, 2, 2)."""
    lowbit = tl.maximum(column & -column, 1)
    level = (lowbit.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127  # log2, from the exponent
    # the rounds before left ceil(width / lowbit) coordinates, so they had the other width - ceil(...) rotations
    index = width - ((width + lowbit - 1) >> level) + (column >> (level + 1))
    entry = tl.arange(0, 2)
    return ptr + 4 * index[:, None, None] + (2 * entry[:, None] + entry[None, :])[None, :, :]


@triton.jit
def _load_blocks(ptr, column, owned, width):
    """Load the blocks (C, 2, 2) of the rotations that are ``owned`` (C,), and the identity for the others."""
    entry = tl.arange(0, 2)
    identity = (entry[:, None] == entry[None, :]).to(ptr.dtype.element_ty)
    return tl.load(_pointers(ptr, column, width), mask=owned[:, None, None], other=identity[None, :, :])


@triton.jit
def _split_blocks(blocks):
    """Split (C, 2, 2) into the blocks of even and of odd columns, (C / 2, 2, 2) each."""
    half: tl.constexpr = blocks.shape[0] // 2
    return tl.split(tl.permute(tl.reshape(blocks, (half, 2, 2, 2)), (0, 2, 3, 1)))


@triton.jit
def _join_blocks(even, odd):
    """Undo :func:`_split_blocks`."""
    return tl.reshape(tl.permute(tl.join(even, odd), (0, 3, 1, 2)), (2 * even.shape[0], 2, 2))


@triton.jit
def _entries(blocks):
    """Return a1, b1, a2, b2, each (1, C), of blocks [[a1, b1], [a2, b2]], (C, 2, 2)."""
    a, b = tl.split(blocks)
    a1, a2 = tl.split(a)
    b1, b2 = tl.split(b)
    return a1[None, :], b1[None, :], a2[None, :], b2[None, :]


@triton.jit
def _split_pairs(x):
    """Split (ROWS, C) into the first and the second members of its pairs, (ROWS, C / 2) each."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))


@triton.jit
def _join_pairs(first, second):
    """Undo :func:`_split_pairs`."""
    return tl.reshape(tl.join(first, second), (first.shape[0], 2 * first.shape[1]))


@triton.jit
def _swap(x, stride: tl.constexpr):
    """Return what the lane ``stride`` away holds: (ROWS, 32), lanes l and l ^ stride exchanged."""
    lane = tl.arange(0, LANES) ^ stride
    return tl.gather(x, tl.broadcast_to(lane[None, :], x.shape), 1)


@triton.jit
def _is_second(stride: tl.constexpr):
    """Tell which lanes, (1, 32), hold second members in the round with this stride (in lanes)."""
    return ((tl.arange(0, LANES) & (2 * stride - 1)) == stride)[None, :]


@triton.jit
def _rotate_lanes(x, other, a1, b1, a2, b2, stride: tl.constexpr, transpose: tl.constexpr):
    """Do one round between lanes: x (ROWS, 32) and ``other``, what each lane's partner holds.

    A second member has the entries of its rotation at hand, a first one gets them from its partner; lanes whose
    coordinate was retired in an earlier round keep their value.
    """
    first = ((tl.arange(0, LANES) & (2 * stride - 1)) == 0)[None, :]
    second = _is_second(stride)
    keep = tl.where(second, b2, tl.where(first, _swap(a1, stride), 1.0))
    if transpose:
        mix = tl.where(second, a2, tl.where(first, _swap(b1, stride), 0.0))
    else:
        mix = tl.where(second, b1, tl.where(first, _swap(a2, stride), 0.0))
    return x * keep + other * mix


@triton.jit
def _lanes(x, a1, b1, a2, b2, stride: tl.constexpr, transpose: tl.constexpr):
    """Do the rounds between lanes from this stride up, on x (ROWS, 32)."""
    if stride < LANES:
        if transpose:
            x = _rotate_lanes(x, _swap(x, stride), a1, b1, a2, b2, stride, transpose)
            x = _lanes(x, a1, b1, a2, b2, 2 * stride, transpose)
        else:
            x = _lanes(x, a1, b1, a2, b2, 2 * stride, transpose)
            x = _rotate_lanes(x, _swap(x, stride), a1, b1, a2, b2, stride, transpose)
    return x


@triton.jit
def _tree(x, blocks, transpose: tl.constexpr):
    """Return x R or x R^T for a tile x (ROWS, C) and blocks (C, 2, 2), C a power of two and at least 32."""
    if x.shape[1] > LANES:
        first, second = _split_pairs(x)
        coarser, blocks = _split_blocks(blocks)
        a1, b1, a2, b2 = _entries(blocks)
        if transpose:
            rest = _tree(first * a1 + second * b1, coarser, transpose)
            x = _join_pairs(rest, first * a2 + second * b2)
        else:
            first = _tree(first, coarser, transpose)
            x = _join_pairs(first * a1 + second * a2, first * b1 + second * b2)
    else:
        a1, b1, a2, b2 = _entries(blocks)
        x = _lanes(x, a1, b1, a2, b2, 1, transpose)
    return x


@triton.jit
def _products(u_first, u_second, v_first, v_second):
    """Return sum over rows of [[u_i v_i, u_i v_j], [u_j v_i, u_j v_j]], (C, 2, 2): the gradient of the 2x2 blocks."""
    column_i = tl.join(u_first * v_first, u_second * v_first)
    column_j = tl.join(u_first * v_second, u_second * v_second)
    return tl.sum(tl.join(column_i, column_j), 0)


@triton.jit
def _lanes_backward(u, v, a1, b1, a2, b2, stride: tl.constexpr):
    """As :func:`_tree_backward`, for the rounds between lanes from this stride up, on (ROWS, 32)."""
    if stride < LANES:
        v_other = _swap(v, stride)
        rotated = _rotate_lanes(v, v_other, a1, b1, a2, b2, stride, True)
        u, rotated, sums = _lanes_backward(u, rotated, a1, b1, a2, b2, 2 * stride)
        u_other = _swap(u, stride)
        second = tl.reshape(_is_second(stride), (LANES, 1, 1))
        sums = tl.where(second, _products(u_other, u, v_other, v), sums)
        u = _rotate_lanes(u, u_other, a1, b1, a2, b2, stride, False)
        v = rotated
    else:
        sums = tl.zeros((LANES, 2, 2), u.dtype)
    return u, v, sums


@triton.jit
def _tree_backward(u, v, blocks):
    """Return u R, v R^T, both (ROWS, C), and the sums of products (C, 2, 2) that are the gradient of the blocks.

    v goes down the tree and u comes up: at a rotation u has been through the coarser rounds and v through the finer.
    """
    if u.shape[1] > LANES:
        u_first, u_second = _split_pairs(u)
        v_first, v_second = _split_pairs(v)
        coarser, blocks = _split_blocks(blocks)
        a1, b1, a2, b2 = _entries(blocks)
        v_rest = v_first * a1 + v_second * b1
        u_first, v_rest, sums = _tree_backward(u_first, v_rest, coarser)
        sums = _join_blocks(sums, _products(u_first, u_second, v_first, v_second))
        u = _join_pairs(u_first * a1 + u_second * a2, u_first * b1 + u_second * b2)
        v = _join_pairs(v_rest, v_first * a2 + v_second * b2)
    else:
        a1, b1, a2, b2 = _entries(blocks)
        u, v, sums = _lanes_backward(u, v, a1, b1, a2, b2, 1)
    return u, v, sums


@triton.jit(do_not_specialize=["tokens"])
def _rotate_kernel(
    x_ptr,
    y_ptr,
    coarse_ptr,
    blocks_ptr,
    tokens,
    width,
    x_row,
    x_column,
    y_row,
    y_column,
    size: tl.constexpr,
    rows: tl.constexpr,
    coarse: tl.constexpr,
    transpose: tl.constexpr,
):
    """Fine rounds on one column block; its first column comes from (x R) or goes to (x R^T) ``coarse`` too."""
    block = tl.program_id(0)
    local = tl.arange(0, size)
    column = block * size + local
    blocks = _load_blocks(blocks_ptr, column, (local > 0) & (column < width), width)
    for tile in range(tl.program_id(1), tl.cdiv(tokens, rows), tl.num_programs(1)):
        row = (tile * rows + tl.arange(0, rows)).to(tl.int64)
        inside = (row < tokens)[:, None] & (column < width)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_row + column[None, :] * x_column, mask=inside, other=0.0)
        x = x.to(blocks.dtype)
        leaders = coarse_ptr + row * tl.num_programs(0) + block
        if coarse and not transpose:
            x = tl.where(local[None, :] == 0, tl.load(leaders, mask=row < tokens, other=0.0)[:, None], x)
        x = _tree(x, blocks, transpose)
        y = x.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + row[:, None] * y_row + column[None, :] * y_column, y, mask=inside)
        if coarse and transpose:
            tl.store(leaders[:, None] + 0 * local[None, :], x, mask=inside & (local[None, :] == 0))


@triton.jit(do_not_specialize=["tokens"])
def _backward_kernel(
    u_ptr,
    v_ptr,
    out_ptr,
    coarse_u_ptr,
    coarse_v_ptr,
    blocks_ptr,
    sums_ptr,
    tokens,
    width,
    u_row,
    u_column,
    v_row,
    v_column,
    out_row,
    out_column,
    size: tl.constexpr,
    rows: tl.constexpr,
    coarse: tl.constexpr,
    out_is_u: tl.constexpr,
):
    """Backward of the fine rounds of one column block; ``out`` is u R or v R^T, the sums are of this program's rows."""
    block = tl.program_id(0)
    local = tl.arange(0, size)
    column = block * size + local
    owned = (local > 0) & (column < width)
    blocks = _load_blocks(blocks_ptr, column, owned, width)
    sums = tl.zeros_like(blocks)
    for tile in tl.range(tl.program_id(1), tl.cdiv(tokens, rows), tl.num_programs(1), num_stages=2):
        row = (tile * rows + tl.arange(0, rows)).to(tl.int64)
        inside = (row < tokens)[:, None] & (column < width)[None, :]
        u = tl.load(u_ptr + row[:, None] * u_row + column[None, :] * u_column, mask=inside, other=0.0)
        v = tl.load(v_ptr + row[:, None] * v_row + column[None, :] * v_column, mask=inside, other=0.0)
        u, v = u.to(blocks.dtype), v.to(blocks.dtype)
        leaders = row * tl.num_programs(0) + block
        if coarse:
            leader = tl.load(coarse_u_ptr + leaders, mask=row < tokens, other=0.0)
            u = tl.where(local[None, :] == 0, leader[:, None], u)
        u, v, products = _tree_backward(u, v, blocks)
        sums += products
        out = u if out_is_u else v
        out = out.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row[:, None] * out_row + column[None, :] * out_column, out, mask=inside)
        if coarse:
            at = coarse_v_ptr + leaders[:, None] + 0 * local[None, :]
            tl.store(at, v, mask=inside & (local[None, :] == 0))
    sums_ptr += tl.program_id(1).to(tl.int64) * 4 * (width - 1)
    tl.store(_pointers(sums_ptr, column, width), sums, mask=owned[:, None, None])


def _per_lane(width: int, itemsize: int) -> int:
    """Columns of a lane: 16 bytes of a row, the widest load, or fewer where the row has fewer columns."""
    return min(16 // itemsize, max(triton.next_power_of_2(width) // 32, 1))


def _grid(x: Tensor, blocks: int, rows: int, programs: int) -> tuple[int, int]:
    """Column blocks, and as many groups of row tiles as fill the device with ``programs`` warps a multiprocessor."""
    groups = max(multiprocessors(x.device) * programs // blocks, 1)
    return blocks, min(triton.cdiv(x.shape[0], rows), groups)


def _apply(x: Tensor, y: Tensor, blocks: Tensor, transpose: bool) -> None:
    """Write x R or x R^T to y; both (T, D), of any strides."""
    width = x.shape[1]
    per_lane = _per_lane(width, x.element_size())
    size, rows = 32 * per_lane, 32 // per_lane
    count = triton.cdiv(width, size)
    coarse = blocks.new_empty(x.shape[0], count) if count > 1 else blocks
    coarser = blocks[width - count :]
    if count > 1 and not transpose:
        _apply(x[:, ::size], coarse, coarser, False)
    _rotate_kernel[_grid(x, count, rows, FORWARD_PROGRAMS)](
        x,
        y,
        coarse,
        blocks,
        *x.shape,
        *x.stride(),
        *y.stride(),
        size=size,
        rows=rows,
        coarse=count > 1,
        transpose=transpose,
        num_warps=1,
        **OPTIONS,
    )
    if count > 1 and transpose:
        _apply(coarse, y[:, ::size], coarser, True)


def _gradients(u: Tensor, v: Tensor, out: Tensor, blocks: Tensor, out_is_u: bool) -> Tensor:
    """Write u R or v R^T to ``out`` (all (T, D), of any strides) and return the gradient of the blocks."""
    width = u.shape[1]
    per_lane = _per_lane(width, max(u.element_size(), v.element_size()))
    size, rows = 32 * per_lane, max(16 // per_lane, 1)
    count = triton.cdiv(width, size)
    coarse_u, coarse_v = blocks.new_empty(2, u.shape[0], count) if count > 1 else (blocks, blocks)
    coarser = blocks[width - count :]
    if count > 1:
        _apply(u[:, ::size], coarse_u, coarser, False)
    grid = _grid(u, count, rows, BACKWARD_PROGRAMS)
    sums = blocks.new_empty(grid[1], *blocks.shape)
    _backward_kernel[grid](
        u,
        v,
        out,
        coarse_u,
        coarse_v,
        blocks,
        sums,
        *u.shape,
        *u.stride(),
        *v.stride(),
        *out.stride(),
        size=size,
        rows=rows,
        coarse=count > 1,
        out_is_u=out_is_u,
        num_warps=1,
        maxnreg=BACKWARD_REGISTERS,
        **OPTIONS,
    )
    if count == 1:
        return sums.sum(0)
    # the coarse part of u R is in place already: the fine rounds have read it
    coarse_out = coarse_u if out_is_u else out[:, ::size]
    coarse_sums = _gradients(u[:, ::size], coarse_v, coarse_out, coarser, out_is_u)
    return torch.cat([sums[:, : width - count].sum(0), coarse_sums])


def rotate(x: Tensor, blocks: Tensor, transpose: bool) -> Tensor:
    """Return ``x R`` or ``x R^T`` for one tree.

    Args:
        x: (T, D), contiguous, of any floating dtype; T may be 0.
        blocks: (D - 1, 2, 2), float32 or float64, contiguous, in the order of :func:`orthotune.ops.staged.rounds`;
            the arithmetic is done in its dtype.
        transpose: apply R^T.

    Returns a new tensor (T, D), rounded once to the dtype of ``x``.
    """
    y = torch.empty_like(x)
    if x.shape[0]:
        with torch.cuda.device_of(x):
            _apply(x, y, blocks, transpose)
    return y


def rotate_backward(x: Tensor, grad: Tensor, blocks: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of :func:`rotate` with respect to x (T, D) and to the blocks (D - 1, 2, 2).

    ``grad`` (T, D), of the output, is contiguous as x is. Intermediate values are rebuilt from x. With u = x and
    v = grad (the other way round for the transpose), the gradient of the block on coordinates (i, j) is
    [[u_i v_i, u_i v_j], [u_j v_i, u_j v_j]] summed over tokens, of u after the coarser rounds of R and of v after the
    finer rounds of R^T; that of x is v R^T (u R for the transpose).
    """
    grad_x = torch.empty_like(x)
    if not x.shape[0]:
        return grad_x, torch.zeros_like(blocks)
    u, v = (grad, x) if transpose else (x, grad)
    with torch.cuda.device_of(x):
        return grad_x, _gradients(u, v, grad_x, blocks, out_is_u=transpose)
