"""The update of AOFT, y + x AO(down) diag(l) AO(up)^T, in one pass over x and y.

Source: Yang et al., "Efficient Adaptation of Pre-trained Vision Transformer underpinned by Approximately Orthogonal
Fine-Tuning Strategy", ICCV 2025 (arXiv 2507.13260); AO(q) and its guarded pole are those of
:mod:`orthotune.ops.approx_orthogonal`.

Write q = down, p = up, l = scale, and for a row x of D and a row g of n numbers

    tail(x) = sum_{i>=1} q_i x_i        slope(x) = x_0 + tail(x) / (1 + q_0)        z_0 = q_0 x_0 + tail(x)
    tail(g) = sum_{i>=1} p_i g_i        slope(g) = g_0 + tail(g) / (1 + p_0)        h_0 = p_0 g_0 + tail(g)
    z_j = x_j - q_j slope(x)            h_j = g_j - p_j slope(g)                    (1 <= j < d)

so that z = x AO(q) and h = g AO(p). With c = sum_{1<=j<d} l_j p_j q_j, the sums over the d columns need z and h no
sooner than the tails do:

    inner(z) = sum_{1<=j<d} p_j l_j z_j = sum_{1<=j<d} p_j l_j x_j - slope(x) c        (inner(h) likewise, with q and g)

and with base(z) = l_0 z_0 - inner(z) / (1 + p_0), base(h) = l_0 h_0 - inner(h) / (1 + q_0),

    y_0 += p_0 l_0 z_0 - inner(z)       y_i += p_i base(z) + [i < d] l_i z_i
    d x_0 = q_0 l_0 h_0 - inner(h)      d x_i = q_i base(h) + [i < d] l_i h_i
    d q_i = sum x_i base(h) - [i < d] l_i h_i slope(x)        d l_j = sum z_j h_j
    d p_i = sum g_i base(z) - [i < d] l_i z_i slope(g)
    d q_0 = sum x_0 l_0 h_0 - tail(x) inner(h) (1 / (1 + q_0))'        (d p_0 likewise)

where the sums are over tokens. base(h) depends on g alone and base(z) on x alone. A program owns whole rows, whose
second reading (the first d columns, and g in the backward) comes from cache; its registers do not depend on D, n or d.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthotune.ops.approx_orthogonal import POLE
from orthotune.ops.cuda import OPTIONS, multiprocessors

GUARD = tl.constexpr(POLE)
WARPS = 4
BACKWARD_PROGRAMS = 3  # programs a multiprocessor holds at once: each keeps sums over tokens of D + n numbers
BACKWARD_REGISTERS = 168  # a thread's share when so many are resident


@triton.jit
def _inverse_pivot(first):
    """Return 1 / (1 + q_0), with 1 + q_0 held away from zero, and its derivative: zero where the guard holds."""
    pivot = 1 + first
    guard = tl.full((), GUARD, first.dtype)
    guarded = tl.abs(pivot) < guard
    inverse = 1 / tl.where(guarded, tl.where(pivot < 0, -guard, guard), pivot)
    return inverse, tl.where(guarded, 0.0, -inverse * inverse)


@triton.jit
def _range(ptr, column, start, stop):
    """Load the entries of a vector with start <= column < stop, and 0 elsewhere."""
    return tl.load(ptr + column, mask=(column >= start) & (column < stop), other=0.0)


@triton.jit
def _tile(ptr, row, column, here, width, dtype: tl.constexpr):
    """Load the tile (rows, columns) of a contiguous matrix with ``width`` columns; 0 outside ``here`` and the width."""
    inside = here[:, None] & (column < width)[None, :]
    return tl.load(ptr + row[:, None] * width + column[None, :], mask=inside, other=0.0).to(dtype)


@triton.jit
def _head_constant(down_ptr, up_ptr, scale_ptr, rank, columns: tl.constexpr):
    """Return c = sum_{1<=j<d} l_j p_j q_j."""
    total = tl.zeros((columns,), down_ptr.dtype.element_ty)
    for start in range(0, rank, columns):
        column = start + tl.arange(0, columns)
        total += (
            _range(down_ptr, column, 1, rank) * _range(up_ptr, column, 1, rank) * _range(scale_ptr, column, 1, rank)
        )
    return tl.sum(total, 0)


@triton.jit
def _sums(ptr, row, here, width, own_ptr, other_ptr, scale_ptr, rank, rows: tl.constexpr, columns: tl.constexpr):
    """Return tail(x) and sum_{1<=j<d} p_j l_j x_j of each row, for own q and other p."""
    dtype: tl.constexpr = own_ptr.dtype.element_ty
    tail = tl.zeros((rows, columns), dtype)
    for start in range(0, width, columns):
        column = start + tl.arange(0, columns)
        tail += _tile(ptr, row, column, here, width, dtype) * _range(own_ptr, column, 1, width)[None, :]
    head = tl.zeros((rows, columns), dtype)
    for start in range(0, rank, columns):
        column = start + tl.arange(0, columns)
        factor = _range(other_ptr, column, 1, rank) * _range(scale_ptr, column, 1, rank)
        head += _tile(ptr, row, column, here, width, dtype) * factor[None, :]
    return tl.sum(tail, 1), tl.sum(head, 1)


@triton.jit
def _scaled_head(ptr, row, column, here, width, own_ptr, scale_ptr, slope, rank, dtype: tl.constexpr):
    """Return l_j z_j = l_j (x_j - q_j slope(x)) for 1 <= j < d, and 0 in the other columns."""
    x = _tile(ptr, row, column, here, width, dtype)
    z = x - _range(own_ptr, column, 1, rank)[None, :] * slope[:, None]
    return z * _range(scale_ptr, column, 1, rank)[None, :]


@triton.jit(do_not_specialize=["tokens"])
def _add_kernel(
    y_ptr,
    x_ptr,
    out_ptr,
    down_ptr,
    up_ptr,
    scale_ptr,
    tokens,
    d_in,
    d_out,
    rank,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    dtype: tl.constexpr = down_ptr.dtype.element_ty
    row = (tl.program_id(0) * rows + tl.arange(0, rows)).to(tl.int64)
    here = row < tokens
    down_0, up_0 = tl.load(down_ptr), tl.load(up_ptr)
    down_inverse, _ = _inverse_pivot(down_0)
    up_inverse, _ = _inverse_pivot(up_0)
    x_0 = tl.load(x_ptr + row * d_in, mask=here, other=0.0).to(dtype)
    tail, head = _sums(x_ptr, row, here, d_in, down_ptr, up_ptr, scale_ptr, rank, rows, columns)
    slope = x_0 + tail * down_inverse
    z_0 = (x_0 * down_0 + tail) * tl.load(scale_ptr)
    inner = head - slope * _head_constant(down_ptr, up_ptr, scale_ptr, rank, columns)
    base = z_0 - inner * up_inverse
    first = up_0 * z_0 - inner
    for start in range(0, d_out, columns):
        column = start + tl.arange(0, columns)
        y = _tile(y_ptr, row, column, here, d_out, dtype)
        y += tl.where((column == 0)[None, :], first[:, None], _range(up_ptr, column, 1, d_out)[None, :] * base[:, None])
        if start < rank:
            y += _scaled_head(x_ptr, row, column, here, d_in, down_ptr, scale_ptr, slope, rank, dtype)
        inside = here[:, None] & (column < d_out)[None, :]
        tl.store(out_ptr + row[:, None] * d_out + column[None, :], y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _accumulate(ptr, column, width, value, fresh):
    """Add ``value`` (columns,) to this program's own sums, which hold nothing yet where ``fresh``."""
    inside = column < width
    before = tl.load(ptr + column, mask=inside & (not fresh), other=0.0)
    tl.store(ptr + column, before + value, mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _backward_kernel(
    grad_x_ptr,
    x_ptr,
    grad_ptr,
    down_ptr,
    up_ptr,
    scale_ptr,
    sums_ptr,
    tokens,
    d_in,
    d_out,
    rank,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Add to d x, unless it is None, and write this program's sums over tokens.

    They are D + n numbers for the main terms of d q and d p, then 3 d for what only the first d columns have: for d q,
    d p and d l. The first entries of d q and d p are among the latter; their places among the former are unused.
    """
    dtype: tl.constexpr = down_ptr.dtype.element_ty
    down_0, up_0, scale_0 = tl.load(down_ptr), tl.load(up_ptr), tl.load(scale_ptr)
    down_inverse, down_slope = _inverse_pivot(down_0)
    up_inverse, up_slope = _inverse_pivot(up_0)
    constant = _head_constant(down_ptr, up_ptr, scale_ptr, rank, columns)
    main_down = sums_ptr + tl.program_id(0).to(tl.int64) * (d_in + d_out + 3 * rank)
    main_up = main_down + d_in
    head_down = main_up + d_out
    for tile in range(tl.program_id(0), tl.cdiv(tokens, rows), tl.num_programs(0)):
        fresh = tile == tl.program_id(0)
        row = (tile * rows + tl.arange(0, rows)).to(tl.int64)
        here = row < tokens
        x_0 = tl.load(x_ptr + row * d_in, mask=here, other=0.0).to(dtype)
        g_0 = tl.load(grad_ptr + row * d_out, mask=here, other=0.0).to(dtype)

        g_tail, g_head = _sums(grad_ptr, row, here, d_out, up_ptr, down_ptr, scale_ptr, rank, rows, columns)
        g_slope = g_0 + g_tail * up_inverse
        h_0 = g_0 * up_0 + g_tail
        h_inner = g_head - g_slope * constant
        h_base = h_0 * scale_0 - h_inner * down_inverse
        h_first = h_0 * scale_0 * down_0 - h_inner

        # the one pass over x: its own sums, its gradient, and the main term of d q, which needs base(h) alone
        tail = tl.zeros((rows, columns), dtype)
        for start in range(0, d_in, columns):
            column = start + tl.arange(0, columns)
            x = _tile(x_ptr, row, column, here, d_in, dtype)
            down = _range(down_ptr, column, 1, d_in)[None, :]
            tail += x * down
            _accumulate(main_down, column, d_in, tl.sum(x * h_base[:, None], 0), fresh)
            if grad_x_ptr is not None:
                update = tl.where((column == 0)[None, :], h_first[:, None], down * h_base[:, None])
                if start < rank:
                    update += _scaled_head(grad_ptr, row, column, here, d_out, up_ptr, scale_ptr, g_slope, rank, dtype)
                update += _tile(grad_x_ptr, row, column, here, d_in, dtype)
                inside = here[:, None] & (column < d_in)[None, :]
                at = grad_x_ptr + row[:, None] * d_in + column[None, :]
                tl.store(at, update.to(grad_x_ptr.dtype.element_ty), mask=inside)
        x_tail = tl.sum(tail, 1)
        x_slope = x_0 + x_tail * down_inverse
        z_0 = x_0 * down_0 + x_tail
        head = tl.zeros((rows, columns), dtype)
        for start in range(0, rank, columns):
            column = start + tl.arange(0, columns)
            z = _scaled_head(x_ptr, row, column, here, d_in, down_ptr, scale_ptr, x_slope, rank, dtype)
            head += z * _range(up_ptr, column, 1, rank)[None, :]
        z_inner = tl.sum(head, 1)
        z_base = z_0 * scale_0 - z_inner * up_inverse

        for start in range(0, d_out, columns):
            column = start + tl.arange(0, columns)
            g = _tile(grad_ptr, row, column, here, d_out, dtype)
            _accumulate(main_up, column, d_out, tl.sum(g * z_base[:, None], 0), fresh)

        down_first = tl.sum(x_0 * h_0 * scale_0 - x_tail * h_inner * down_slope, 0)
        up_first = tl.sum(g_0 * z_0 * scale_0 - g_tail * z_inner * up_slope, 0)
        scale_first = tl.sum(z_0 * h_0, 0)
        for start in range(0, rank, columns):
            column = start + tl.arange(0, columns)
            scale = _range(scale_ptr, column, 1, rank)
            z = (
                _tile(x_ptr, row, column, here, d_in, dtype)
                - _range(down_ptr, column, 1, rank)[None, :] * x_slope[:, None]
            )
            h = (
                _tile(grad_ptr, row, column, here, d_out, dtype)
                - _range(up_ptr, column, 1, rank)[None, :] * g_slope[:, None]
            )
            zero = column == 0
            down_sum = tl.where(zero, down_first, -scale * tl.sum(h * x_slope[:, None], 0))
            up_sum = tl.where(zero, up_first, -scale * tl.sum(z * g_slope[:, None], 0))
            scale_sum = tl.where(zero, scale_first, tl.sum(z * h, 0))
            _accumulate(head_down, column, rank, down_sum, fresh)
            _accumulate(head_down + rank, column, rank, up_sum, fresh)
            _accumulate(head_down + 2 * rank, column, rank, scale_sum, fresh)
        tl.debug_barrier()  # a thread may read back sums that another one wrote


def _tile_shape(d_in: int, d_out: int) -> tuple[int, int]:
    """Rows and columns of a tile: 32 numbers a thread, at most 1024 columns and 16 rows."""
    columns = min(triton.next_power_of_2(max(d_in, d_out)), 1024)
    return min(32 * 32 * WARPS // columns, 16), columns


def add_update(y: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """Return ``y + x AO(down) diag(scale) AO(up)^T``, a new tensor (T, n), rounded once to the dtype of ``y``.

    Args:
        y: (T, n), contiguous, of any floating dtype; T may be 0.
        x: (T, D), contiguous.
        down: (D,), float32 or float64, the dtype of the arithmetic.
        up: (n,), of the same dtype.
        scale: (d,), of the same dtype, 1 <= d <= min(D, n).
    """
    out = torch.empty_like(y)
    tokens, d_in, d_out = len(x), x.shape[1], y.shape[1]
    rows, columns = _tile_shape(d_in, d_out)
    if tokens:
        with torch.cuda.device_of(x):
            _add_kernel[(triton.cdiv(tokens, rows),)](
                y, x, out, down, up, scale, tokens, d_in, d_out, len(scale), rows, columns, num_warps=WARPS, **OPTIONS
            )
    return out


def add_update_backward(
    grad_x: Tensor | None, x: Tensor, grad: Tensor, down: Tensor, up: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of down, up and scale; that of x is added to ``grad_x`` (T, D), if given, in place.

    ``grad`` (T, n) is that of the output of :func:`add_update`, whose arguments the others are; all contiguous.
    """
    tokens, d_in, d_out, rank = len(x), x.shape[1], grad.shape[1], len(scale)
    rows, columns = _tile_shape(d_in, d_out)
    programs = min(triton.cdiv(tokens, rows), multiprocessors(x.device) * BACKWARD_PROGRAMS)
    sums = down.new_empty(programs, d_in + d_out + 3 * rank)
    if programs:
        with torch.cuda.device_of(x):
            _backward_kernel[(programs,)](
                grad_x,
                x,
                grad,
                down,
                up,
                scale,
                sums,
                tokens,
                d_in,
                d_out,
                rank,
                rows,
                columns,
                num_warps=WARPS,
                maxnreg=BACKWARD_REGISTERS,
                **OPTIONS,
            )
    grad_down, grad_up, head = sums.sum(0).split([d_in, d_out, 3 * rank])
    head_down, head_up, grad_scale = head.view(3, rank)
    for whole, part in ((grad_down, head_down), (grad_up, head_up)):
        whole[0] = 0
        whole[:rank] += part
    return grad_down.clone(), grad_up.clone(), grad_scale.clone()
