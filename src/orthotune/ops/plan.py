"""How an adapted linear layer is computed: the cost model, and the products on the weight side that it chooses.

A method's change can be applied to the activations (T tokens) or to the weight (n x D), and the products with the
weight are the same either way. What differs is how many numbers pass through memory, which is what bounds those passes
on a CPU and on a GPU alike; so the side that moves fewer is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from orthotune.ops.precision import HALF

WEIGHT_CHUNK = 2**22  # numbers of an adapted weight that exist at a time; no layer's adapted weight is ever whole above
TINY = 2**12  # numbers of a weight below which nothing is to be gained from working on it or keeping it
MIN_ROWS = 256  # and at least this many of its rows: thinner products waste the matrix unit


def on_weight_side(x: Tensor, weight: Tensor, *, x_passes: int, y_passes: int, weight_passes: int) -> bool:
    """Return whether a method is applied to ``weight`` (n, D) rather than to the activations ``x`` (T, D).

    The passes count how often, in a training step, the method reads or writes each number of x (or its gradient), of
    the output (T, n) and of the weight, beyond what both sides share.

    In half precision the activations are always chosen: an update that adds up to something over a row of D entries can
    be smaller than the rounding error of each of them, and would be lost in the weight.
    """
    tokens, (out_features, in_features) = len(x), weight.shape
    activation_cost = tokens * (x_passes * in_features + y_passes * out_features)
    weight_cost = weight_passes * out_features * in_features
    return x.dtype not in HALF and weight.numel() >= TINY and weight_cost < activation_cost


def weight_rows(weight: Tensor) -> list[slice]:
    """Cut the rows of a weight (n, D) into the slices that are adapted at a time."""
    out_features, in_features = weight.shape
    size = max(WEIGHT_CHUNK // in_features, MIN_ROWS)
    return [slice(start, start + size) for start in range(0, out_features, size)]


Adapt = Callable[[Tensor, slice], Tensor]
"""Returns the adapted rows of a weight, (rows, D), given these rows and which they are."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, adapt: Adapt) -> Tensor:
    """Return x (T, D) times the adapted weight, plus bias: (T, n)."""
    chunks = weight_rows(weight)
    if len(chunks) == 1:
        return F.linear(x, adapt(weight, chunks[0]).to(x.dtype), bias)
    y = x.new_empty(len(x), len(weight))
    for rows in chunks:
        y[:, rows] = F.linear(x, adapt(weight[rows], rows).to(x.dtype), None if bias is None else bias[rows])
    return y


def linear_gradient(grad: Tensor, weight: Tensor, adapt: Adapt) -> Tensor:
    """Return the gradient of x, (T, D), from the output's, (T, n): grad times the adapted weight."""
    chunks = weight_rows(weight)
    if len(chunks) == 1:
        return grad @ adapt(weight, chunks[0]).to(grad.dtype)
    full = torch.promote_types(grad.dtype, torch.float32)  # what the slices' parts are added up in
    grad_x = grad.new_zeros(len(grad), weight.shape[1], dtype=full)
    for rows in chunks:
        adapted = adapt(weight[rows], rows).to(grad.dtype)
        if grad.dtype == full:
            grad_x.addmm_(grad[:, rows], adapted)
        else:
            grad_x += grad[:, rows] @ adapted
    return grad_x.to(grad.dtype)


def is_worth_keeping(weight: Tensor) -> bool:
    """Return whether to keep an adapted ``weight``: not if it is tiny, or a quarter of memory would not stay free."""
    if weight.numel() < TINY:
        return False
    if weight.is_cuda:
        free, total = torch.cuda.mem_get_info(weight.device)
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return free - weight.numel() * weight.element_size() > total / 4


def bias_gradient(grad: Tensor) -> Tensor:
    """Sum an output's gradient (..., n) over all but the last dimension, at least in float32."""
    rows = grad.flatten(0, -2)
    if grad.dtype in HALF:
        return rows.sum(0, dtype=torch.float32).to(grad.dtype)
    return rows.new_ones(len(rows)) @ rows  # twice as fast as a sum over rows, on a CPU


def check_frozen(needs_gradient: bool) -> None:
    """Raise NotImplementedError if a gradient of the base weight is asked for."""
    if needs_gradient:
        raise NotImplementedError("the base weight of an adapted layer is frozen: it has no gradient here")
