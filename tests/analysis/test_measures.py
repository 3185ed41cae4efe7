"""Every measure against the plainest form of its formula, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from orthotune.analysis import linear_cka, pair_angles
from orthotune.analysis.angles import BLOCK, chance_deviation
from orthotune.analysis.matrices import describe, movement, overlap, svd


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(vectors: Tensor) -> tuple[list[float], list[float]]:
    """The angle in degrees, and the distance on the unit sphere, of each pair."""
    found, distances = [], []
    for a, b in itertools.combinations(vectors.tolist(), 2):
        dot, length_a, length_b = (sum(x * y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b)))
        cosine = dot / math.sqrt(length_a * length_b)
        found.append(math.degrees(math.acos(cosine)))
        distances.append(math.dist([x / math.sqrt(length_a) for x in a], [x / math.sqrt(length_b) for x in b]))
    return found, distances


@pytest.mark.parametrize("shape", [(7, 5), (12, 3), (2, 9)])
def test_angles_are_those_of_all_pairs(shape: tuple[int, int]) -> None:
    vectors = random(*shape)
    want, distances = brute_force(vectors)
    got = pair_angles(vectors)
    mean = sum(want) / len(want)
    assert got.pairs == len(want)
    assert got.mean == pytest.approx(mean, rel=1e-12)
    assert got.deviation == pytest.approx(math.sqrt(sum((w - mean) ** 2 for w in want) / len(want)), abs=1e-6)
    assert got.from_right == pytest.approx(sum(abs(w - 90) for w in want) / len(want), rel=1e-12)
    assert got.cosine == pytest.approx(max(abs(math.cos(math.radians(w))) for w in want), rel=1e-12)
    assert got.energy == pytest.approx(sum(1 / d for d in distances) / len(distances), rel=1e-9)
    assert [sum(1 for w in want if i <= w < i + 1) for i in range(180)] == list(got.histogram)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random(23, 4)
    whole = pair_angles(vectors)
    assert BLOCK > 23
    monkeypatch.setattr("orthotune.analysis.angles.BLOCK", 5)
    parts = pair_angles(vectors)
    assert parts.histogram == whole.histogram
    assert parts.pairs == whole.pairs == 23 * 22 // 2
    assert parts.mean == pytest.approx(whole.mean, rel=1e-12)
    assert parts.energy == pytest.approx(whole.energy, rel=1e-12)


def test_a_sample_is_of_that_size_and_the_same_for_a_seed() -> None:
    vectors = random(60, 6)
    first, again, other = (pair_angles(vectors, limit=20, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert first.sampled == 20
    assert first.pairs == 190
    assert pair_angles(vectors, limit=60).sampled is None
    assert first.mean == pytest.approx(pair_angles(vectors).mean, abs=5)


def test_zero_vectors_have_no_angle() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    got = pair_angles(vectors)
    assert (got.vectors, got.zero, got.pairs) == (3, 1, 1)
    assert got.mean == pytest.approx(90)
    none = pair_angles(torch.zeros(4, 3))
    assert (none.zero, none.pairs, none.mean, none.energy) == (4, 0, None, None)
    assert pair_angles(torch.ones(1, 3)).mean is None


def test_the_energy_of_parallel_vectors_is_infinite() -> None:
    assert pair_angles(torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.0, 1.0]])).energy is None
    assert pair_angles(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).energy == pytest.approx(0.5)  # opposite: distance 2


# By integrating x^2 sin^(d-2)(90 + x): d = 1 has 0 and 180 alone; d = 2 is uniform; d = 3 gives pi^2 / 4 - 2.
@pytest.mark.parametrize(
    ("dimension", "radians"), [(1, math.pi / 2), (2, math.pi / math.sqrt(12)), (3, math.sqrt(math.pi**2 / 4 - 2))]
)
def test_chance_in_few_dimensions(dimension: int, radians: float) -> None:
    assert chance_deviation(dimension) == pytest.approx(math.degrees(radians), rel=1e-9)


def test_chance_is_what_random_directions_do() -> None:
    assert pair_angles(random(800, 50)).deviation == pytest.approx(chance_deviation(50), rel=0.01)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_description_of_a_matrix(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    got = describe(matrix, svd(matrix)[1])
    values = torch.linalg.eigvalsh(matrix.T @ matrix if shape[0] > shape[1] else matrix @ matrix.T).flip(0).sqrt()
    assert got.singular_values == pytest.approx(values.tolist(), rel=1e-10)
    assert got.frobenius == pytest.approx(math.sqrt(sum(x * x for row in matrix.tolist() for x in row)), rel=1e-12)
    assert got.spectral == got.singular_values[0]
    assert got.rows == pair_angles(matrix)
    assert got.columns == pair_angles(matrix.T)
    few = matrix if shape[0] < shape[1] else matrix.T
    assert got.defect == pytest.approx((few @ few.T - torch.eye(4)).abs().max().item(), rel=1e-12)
    assert describe(torch.linalg.qr(matrix if shape[0] > shape[1] else matrix.T)[0], values).defect < 1e-14


def measured(before: Tensor, after: Tensor, top: int = 3, bias: tuple[Tensor, Tensor] | None = None):
    return movement(before, after, svd(before), svd(after), bias, top)


def test_the_parts_of_a_movement_add_up() -> None:
    before = random(7, 5)
    after = before + 0.3 * random(7, 5, seed=1)
    got = measured(before, after, bias=(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])))
    assert got.relative == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-12)
    assert got.norm_part**2 + got.angle_part**2 == pytest.approx(got.relative**2, rel=1e-12)
    cosines = torch.nn.functional.cosine_similarity(before, after)
    assert got.turn == pytest.approx(torch.rad2deg(cosines.arccos()).mean().item(), rel=1e-9)
    assert got.bias == pytest.approx(1 / 5)
    assert got.rank == 5
    values = torch.linalg.svdvals(after - before)
    assert got.stable_rank == pytest.approx((values.square().sum() / values[0] ** 2).item(), rel=1e-9)
    assert got.spectral == pytest.approx((values[0] / torch.linalg.svdvals(before)[0]).item(), rel=1e-9)


def test_a_pure_rescaling_of_rows_turns_nothing_and_a_rotation_changes_no_length() -> None:
    before = random(6, 4)
    scaled = measured(before, before * torch.tensor([1.1, 0.9, 1, 2, 1, 0.5], dtype=torch.float64)[:, None])
    assert scaled.angle_part < 1e-14
    assert scaled.norm_part == pytest.approx(scaled.relative, rel=1e-12)
    rotation = torch.linalg.qr(random(4, 4, seed=2))[0]
    turned = measured(before, before @ rotation)
    assert turned.norm_part < 1e-14
    assert turned.left == pytest.approx(1)  # the left singular vectors of W R are those of W
    assert turned.right < 0.95


def test_no_movement() -> None:
    before = random(5, 4)
    got = measured(before, before.clone())
    assert (got.relative, got.turn, got.rank, got.stable_rank, got.change_left) == (0, 0, 0, None, None)
    assert got.left == pytest.approx(1)
    assert got.right == pytest.approx(1)


def test_a_low_rank_change_has_its_rank_and_its_own_subspace() -> None:
    before = torch.diag(torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64))
    change = torch.zeros(5, 5, dtype=torch.float64)
    change[0, 4] = 0.1  # left: the leading direction of W; right: its last
    got = measured(before, before + change, top=2)
    assert got.rank == 1
    assert got.singular_values == pytest.approx((0.1,))
    assert got.change_left == pytest.approx(1)
    assert got.change_right == pytest.approx(0, abs=1e-20)


def test_overlap_of_subspaces() -> None:
    basis = torch.linalg.qr(random(6, 6))[0]
    assert overlap(basis[:, :3], basis[:, 1:4]) == pytest.approx(2 / 3)
    assert overlap(basis[:, :1], basis[:, :4]) == pytest.approx(1)
    assert overlap(basis[:, :2], basis[:, 2:4]) == pytest.approx(0, abs=1e-20)


def test_cka_against_its_formula() -> None:
    x, y = random(9, 4), random(9, 6, seed=1) + 2
    a, b = x - x.mean(0), y - y.mean(0)
    want = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y) == pytest.approx(want.item(), rel=1e-12)
    rotation = torch.linalg.qr(random(4, 4, seed=2))[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, torch.ones(9, 2)) == 0
