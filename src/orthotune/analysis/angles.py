"""Angles between the row vectors of a matrix, all pairs of them, in blocks; and the energy that goes with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 180  # of the histogram: one degree each, from 0 to 180
BLOCK = 1024  # vectors whose angles with all others are in memory at a time
SHORTEST = 1e-12  # of the longest vector: a shorter one has no direction that can be told from rounding
SAME = 1e-6  # chord between unit vectors below which they count as one, and the energy as infinite


@dataclass(frozen=True)
class Angles:
    """Angles, in degrees from 0 to 180, between the pairs of a set of vectors.

    Attributes:
        vectors: how many vectors there are.
        zero: how many of them are zero, which have no direction and are left out.
        sampled: how many of the others were drawn to measure; None: all were.
        dimension: of the space the vectors are in.
        pairs: how many angles were measured.
        mean: mean angle; this and the next four are None without a pair.
        deviation: standard deviation of the angles.
        from_right: mean distance of an angle from 90 degrees.
        cosine: largest absolute cosine of a pair (the matrix's mutual coherence).
        energy: hyperspherical energy per pair, the mean of 1 / ||u_i - u_j|| over unit vectors; also None where two
            vectors point the same way, for which it is infinite.
        chance: standard deviation of the angle of two random directions in that dimension, whose mean is 90.
        histogram: how many angles lie in each degree.
    """

    vectors: int
    zero: int
    sampled: int | None
    dimension: int
    pairs: int
    mean: float | None
    deviation: float | None
    from_right: float | None
    cosine: float | None
    energy: float | None
    chance: float
    histogram: tuple[int, ...]


@torch.no_grad()
def pair_angles(vectors: Tensor, *, limit: int = 4096, seed: int = 0) -> Angles:
    """Measure the angles between the rows of ``vectors`` (N, d), in float64, whatever their lengths.

    Of more than ``limit`` vectors that many are drawn without replacement by ``seed``; memory is O(BLOCK * N).
    The energy is that of Liu et al., "Learning towards Minimum Hyperspherical Energy" (NeurIPS 2018, arXiv 1805.09298)
    for s = 1, divided by the number of ordered pairs, so that sets of different sizes compare.
    """
    unit, zero = _unit(vectors)
    sampled = None
    if len(unit) > limit:
        chosen = torch.randperm(len(unit), generator=torch.Generator().manual_seed(seed))[:limit]
        unit, sampled = unit[chosen.sort().values.to(unit.device)], limit
    total, squares, distance, energy, largest, pairs = 0.0, 0.0, 0.0, 0.0, 0.0, 0
    histogram = torch.zeros(BINS, dtype=torch.float64)
    for start in range(0, len(unit), BLOCK):
        cosines = unit[start : start + BLOCK] @ unit[start:].T
        above = torch.ones_like(cosines, dtype=torch.bool).triu_(1)
        cosine = cosines[above].clamp_(-1, 1)
        if not len(cosine):
            continue
        angle = torch.rad2deg(cosine.arccos())
        off = angle - 90
        pairs += len(angle)
        total, squares = total + off.sum().item(), squares + off.square().sum().item()
        distance, largest = distance + off.abs().sum().item(), max(largest, cosine.abs().max().item())
        chord = (2 - 2 * cosine).sqrt()
        energy += math.inf if chord.min() < SAME else (1 / chord).sum().item()
        histogram += torch.histc(angle.cpu(), BINS, 0, 180)
    mean = total / pairs if pairs else None
    return Angles(
        vectors=len(vectors),
        zero=zero,
        sampled=sampled,
        dimension=vectors.shape[1],
        pairs=pairs,
        mean=None if mean is None else 90 + mean,
        deviation=None if mean is None else math.sqrt(max(squares / pairs - mean**2, 0)),
        from_right=distance / pairs if pairs else None,
        cosine=largest if pairs else None,
        energy=energy / pairs if pairs and math.isfinite(energy) else None,
        chance=chance_deviation(vectors.shape[1]),
        histogram=tuple(int(count) for count in histogram.tolist()),
    )


def chance_deviation(dimension: int) -> float:
    """Return the standard deviation, in degrees, of the angle between two random directions in R^d.

    The angle's density is proportional to sin^(d - 2), whose variance is trigamma(d / 2) / 2.
    """
    half = torch.tensor(dimension / 2, dtype=torch.float64)
    return math.degrees(math.sqrt(torch.special.polygamma(1, half).item() / 2))


def _unit(vectors: Tensor) -> tuple[Tensor, int]:
    """Return the rows that are not zero, at length 1 in float64, and how many were."""
    vectors = vectors.detach().double()
    lengths = vectors.norm(dim=1)
    kept = lengths > SHORTEST * lengths.max() if len(lengths) else lengths > 0
    return vectors[kept] / lengths[kept, None], int((~kept).sum())
