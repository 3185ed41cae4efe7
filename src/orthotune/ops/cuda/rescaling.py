"""RLRR's rescaled weight and its gradients, neither of which writes an (n, D) matrix that is not its result.

Source: Dong et al., "Low-Rank Rescaled Vision Transformer Fine-Tuning: A Residual Design Approach", CVPR 2024
(arXiv 2403.19067); the layout is that of :mod:`orthotune.ops.rescaling`. In torch's layout, with W (n, D),

    W* = (S_right^T S_left^T + residual) (.) W
    G = dy^T x        H = G (.) W        d S_left = H^T S_right^T        d S_right = S_left^T H^T

The gradients are the epilogue of the product G, tile by tile: a tile of G is reduced along its rows and its columns to
r vectors each while it is in registers. The tokens are cut into slices where W has too few tiles to fill the device.
Partial sums are kept per slice and tile row (column) and added up at the end.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthotune.ops.cuda import OPTIONS, multiprocessors

TILE_ROWS = 32  # of the weight, for the element-wise kernel
TILE_COLUMNS = 128
GROUP = 8  # tile rows that run side by side, so that what they read of x stays in cache


@triton.jit
def _rescale_kernel(
    weight_ptr,
    left_ptr,
    right_ptr,
    out_ptr,
    d_out,
    d_in,
    rank,
    left_row,
    left_column,
    right_row,
    right_column,
    residual: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    row = tl.program_id(1) * rows + tl.arange(0, rows)
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    gain = tl.zeros((rows, columns), left_ptr.dtype.element_ty)
    for k in range(rank):
        left = tl.load(left_ptr + column * left_row + k * left_column, mask=column < d_in, other=0.0)
        right = tl.load(right_ptr + k * right_row + row * right_column, mask=row < d_out, other=0.0)
        gain += right[:, None] * left[None, :]
    if residual:
        gain += 1
    at = row[:, None].to(tl.int64) * d_in + column[None, :]
    inside = (row < d_out)[:, None] & (column < d_in)[None, :]
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(gain.dtype)
    tl.store(out_ptr + at, (gain * weight).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "slice_tokens"])
def _gradients_kernel(
    x_ptr,
    grad_ptr,
    weight_ptr,
    left_ptr,
    right_ptr,
    left_sums_ptr,
    right_sums_ptr,
    tokens,
    d_in,
    d_out,
    rank,
    left_row,
    left_column,
    right_row,
    right_column,
    slice_tokens,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    group: tl.constexpr,
    precision: tl.constexpr,
):
    """Sum one tile of H over one slice of tokens: (slices, tile rows, r, D) and (slices, tile columns, r, n)."""
    dtype: tl.constexpr = left_ptr.dtype.element_ty
    sum_dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile_rows, tile_columns = tl.cdiv(d_out, rows), tl.cdiv(d_in, columns)
    first = tl.program_id(0) // (group * tile_columns) * group
    height = tl.minimum(tile_rows - first, group)
    tile_row = first + tl.program_id(0) % (group * tile_columns) % height
    tile_column = tl.program_id(0) % (group * tile_columns) // height

    row = tile_row * rows + tl.arange(0, rows)
    column = tile_column * columns + tl.arange(0, columns)
    start = tl.program_id(1) * slice_tokens
    stop = tl.minimum(start + slice_tokens, tokens)
    product = tl.zeros((rows, columns), sum_dtype)
    for begin in range(start, stop, depth):
        token = (begin + tl.arange(0, depth)).to(tl.int64)[:, None]
        inside = token < stop
        grad = tl.load(grad_ptr + token * d_out + row[None, :], mask=inside & (row < d_out)[None, :], other=0.0)
        x = tl.load(x_ptr + token * d_in + column[None, :], mask=inside & (column < d_in)[None, :], other=0.0)
        product = tl.dot(tl.trans(grad), x, product, input_precision=precision, out_dtype=sum_dtype)

    at = weight_ptr + row[:, None].to(tl.int64) * d_in + column[None, :]
    weight = tl.load(at, mask=(row < d_out)[:, None] & (column < d_in)[None, :], other=0.0)
    product = product.to(dtype) * weight.to(dtype)
    left_sums_ptr += (tl.program_id(1) * tile_rows + tile_row).to(tl.int64) * rank * d_in
    right_sums_ptr += (tl.program_id(1) * tile_columns + tile_column).to(tl.int64) * rank * d_out
    for k in range(rank):
        left = tl.load(left_ptr + column * left_row + k * left_column, mask=column < d_in, other=0.0)
        right = tl.load(right_ptr + k * right_row + row * right_column, mask=row < d_out, other=0.0)
        tl.store(left_sums_ptr + k * d_in + column, tl.sum(product * right[:, None], 0), mask=column < d_in)
        tl.store(right_sums_ptr + k * d_out + row, tl.sum(product * left[None, :], 1), mask=row < d_out)


def _precision(x: Tensor) -> str:
    """Return how products of float32 are formed: as torch does, in TF32 only where the user allows it."""
    allowed = x.dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed else "ieee"


def _product_tile(itemsize: int) -> tuple[int, int, int]:
    """Rows, columns and depth of a tile of G = dy^T x: 128 x 256 on tensor cores, less where registers would spill."""
    return {2: (128, 256, 64), 4: (64, 64, 32)}.get(itemsize, (32, 32, 16))


def rescale(weight: Tensor, left: Tensor, right: Tensor, residual: bool) -> Tensor:
    """Return W* (n, D), rounded once to the weight's dtype.

    Args:
        weight: (n, D), contiguous, of any floating dtype.
        left: (D, r), float32 or float64, the dtype of the arithmetic; of any strides.
        right: (r, n), of the same dtype; of any strides.
        residual: add W itself.
    """
    out = torch.empty_like(weight)
    d_out, d_in = weight.shape
    grid = triton.cdiv(d_in, TILE_COLUMNS), triton.cdiv(d_out, TILE_ROWS)
    with torch.cuda.device_of(weight):
        _rescale_kernel[grid](
            weight,
            left,
            right,
            out,
            d_out,
            d_in,
            left.shape[1],
            *left.stride(),
            *right.stride(),
            residual,
            TILE_ROWS,
            TILE_COLUMNS,
            **OPTIONS,
        )
    return out


def gradients(x: Tensor, grad: Tensor, weight: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of left (D, r) and right (r, n), in their dtype.

    Args:
        x: (T, D), contiguous; T may be 0.
        grad: (T, n), the output's gradient, of the dtype of ``x``; contiguous.
        weight: (n, D), of any floating dtype; contiguous.
        left: (D, r), float32 or float64; of any strides.
        right: (r, n), of the same dtype; of any strides.
    """
    (tokens, d_in), d_out, rank = x.shape, grad.shape[1], left.shape[1]
    rows, columns, depth = _product_tile(x.element_size())
    tile_rows, tile_columns = triton.cdiv(d_out, rows), triton.cdiv(d_in, columns)
    # about three rounds of tiles over the device, each of at least 16 steps of the product
    wanted = 3 * multiprocessors(x.device) // (tile_rows * tile_columns)
    slices = max(min(wanted, tokens // (16 * depth)), 1)
    slice_tokens = triton.cdiv(triton.cdiv(tokens, slices), depth) * depth
    left_sums = left.new_empty(slices, tile_rows, rank, d_in)
    right_sums = left.new_empty(slices, tile_columns, rank, d_out)
    with torch.cuda.device_of(x):
        _gradients_kernel[(tile_rows * tile_columns, slices)](
            x,
            grad,
            weight,
            left,
            right,
            left_sums,
            right_sums,
            tokens,
            d_in,
            d_out,
            rank,
            *left.stride(),
            *right.stride(),
            slice_tokens,
            rows,
            columns,
            depth,
            GROUP,
            _precision(x),
            num_warps=8 if x.element_size() == 2 else 4,
            num_stages=3,
            **OPTIONS,
        )
    return left_sums.sum((0, 1)).T.contiguous(), right_sums.sum((0, 1))
