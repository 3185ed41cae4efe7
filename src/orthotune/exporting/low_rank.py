"""Low-rank factors of a matrix: the exact ones where they are known, else the best by the singular values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orthotune.errors import InputError


@dataclass
class LowRank:
    """Float32 factors A (k, D) and B (n, k) of a matrix M (n, D), and how far B A is from it.

    ``norm`` is ||M||_F and ``residual`` ||M - B A||_F, in float64 of the float32 factors.
    """

    a: Tensor
    b: Tensor
    norm: float
    residual: float


def check_accuracy(rank: int | None, tolerance: float | None) -> None:
    """InputError unless at most one of the two is given, and in range."""
    if rank is not None and tolerance is not None:
        raise InputError(f"rank={rank} and tolerance={tolerance} exclude each other: give one of them")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise InputError(f"rank={rank!r} is out of range: it is a whole number of at least 1")
    if tolerance is not None and not 0 < tolerance < 1:
        raise InputError(f"tolerance={tolerance!r} is out of range: it is a relative error between 0 and 1")


def low_rank(
    matrix: Tensor,
    exact: tuple[Tensor, Tensor] | None = None,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
) -> LowRank | None:
    """Factor ``matrix`` (n, D), float64; a matrix of zeros has factors of rank 1.

    With ``rank`` the best factors of that rank, the truncated singular value decomposition (Eckart and Young), or
    ``exact`` ones A (k, D), B (n, k) with k <= rank; with ``tolerance`` those of the smallest rank whose relative
    Frobenius error is at most that; with neither ``exact``, None where there are none.
    """
    if not matrix.any():
        exact = matrix.new_zeros(1, matrix.shape[1]), matrix.new_zeros(len(matrix), 1)
    if exact is not None and len(exact[0]) > min(matrix.shape):
        exact, rank = None, min(matrix.shape) if tolerance is None and rank is None else rank
    if exact is not None and (len(exact[0]) <= rank if rank is not None else tolerance is None):
        return _measured(matrix, *exact)
    if rank is None and tolerance is None:
        return None
    u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    if rank is None:
        assert tolerance is not None
        tails = s.double().square().flip(0).cumsum(0).flip(0).sqrt()  # tails[k]: the error of rank k
        rank = int((tails > tolerance * tails[0]).sum())
    rank = min(max(rank, 1), len(s))
    root = s[:rank].sqrt()  # split evenly, so that neither factor is out of range in half precision
    return _measured(matrix, root[:, None] * v[:rank], u[:, :rank] * root)


def _measured(matrix: Tensor, a: Tensor, b: Tensor) -> LowRank:
    a, b = a.float().contiguous(), b.float().contiguous()
    residual = torch.linalg.matrix_norm(matrix - b.double() @ a.double()).item()
    return LowRank(a, b, torch.linalg.matrix_norm(matrix).item(), residual)
