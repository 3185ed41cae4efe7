"""AOFT's projections against the explicit matrix."""

from __future__ import annotations

import pytest
import torch

import reference
from orthotune.ops import approx_orthogonal as ao

SHAPES = [(1, 1), (2, 1), (2, 2), (3, 2), (7, 7), (31, 8), (96, 33), (768, 8), (3072, 512)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("width", "rank"), SHAPES)
def test_matrix_free_forms_match_the_matrix(width: int, rank: int) -> None:
    q = ao.random_unit(width).double() * 1.3
    matrix = reference.approx_orthogonal_matrix(q)[:, :rank]
    x, z = torch.randn(3, width, dtype=torch.float64), torch.randn(3, rank, dtype=torch.float64)
    assert torch.allclose(ao.dense(q, rank), matrix)
    assert torch.allclose(ao.project(x, q, rank), x @ matrix)
    assert torch.allclose(ao.expand(z, q), z @ matrix.T)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("width", "rank"), SHAPES)
def test_update_and_gradients_match_dense(width: int, rank: int, dtype: torch.dtype) -> None:
    out = width + 3
    want_args = [
        torch.randn(2, 5, out),
        torch.randn(2, 5, width),
        ao.random_unit(width),
        ao.random_unit(out),
        torch.randn(rank),
    ]
    want_args = [a.double().requires_grad_() for a in want_args]
    y, x, down, up, scale = want_args
    want = y + x @ reference.aoft_weight(torch.zeros(out, width, dtype=torch.float64), down, up, scale).T
    grad = torch.randn_like(want)
    want.backward(grad)
    args = [a.detach().to(dtype).requires_grad_() for a in want_args]
    got = ao.add_update(*args)
    got.backward(grad.to(dtype))
    assert reference.relative_error(got, want) <= reference.TOLERANCE[dtype]
    for low, high in zip(args, want_args, strict=True):
        assert reference.relative_error(low.grad, high.grad) <= reference.TOLERANCE[dtype]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(("width", "rank"), [(1, 1), (2, 2), (5, 3), (9, 9), (40, 35)])
def test_gradcheck(width: int, rank: int) -> None:
    shapes = [(2, width + 1), (2, width), (width,), (width + 1,), (rank,)]
    args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(ao.add_update, args)
    assert torch.autograd.gradcheck(ao.update, args[2:])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_operator_passes_opcheck() -> None:
    args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 6), (2, 5), (5,), (6,), (3,)]]
    torch.library.opcheck(torch.ops.orthotune.approx_orthogonal_add.default, tuple(args))
    for tokens in (2, 20):
        x = torch.randn(tokens, 5, dtype=torch.float64, requires_grad=True)
        weight, bias = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
        torch.library.opcheck(torch.ops.orthotune.approx_orthogonal_linear.default, (x, weight, bias, *args[2:]))


@pytest.mark.parametrize("width", [2, 31, 768])
def test_unit_vector_gives_orthonormal_columns(width: int) -> None:
    q = ao.random_unit(width).double()
    assert ao.defect(q / q.norm(), width) < 1e-12
    assert ao.defect(1.1 * q / q.norm(), width) > 0.05


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("tail", [0.0, 0.3])
def test_pole_is_finite_forward_and_backward(tail: float) -> None:
    down = torch.tensor([-1.0, tail, 0.0, tail]).requires_grad_()
    up = torch.tensor([-1.0, tail, 0.0]).requires_grad_()
    scale = torch.ones(2, requires_grad=True)
    y = ao.add_update(torch.zeros(2, 3), torch.randn(2, 4), down, up, scale)
    y.sum().backward()
    for value in (y, down.grad, up.grad, scale.grad, ao.dense(down.detach(), 3)):
        assert value.isfinite().all()


def test_random_start_stays_away_from_the_pole() -> None:
    for _ in range(50):
        q = ao.random_unit(2)
        assert q[0] >= 0
        assert q.norm() == pytest.approx(1)


@pytest.mark.parametrize("rank", [0, 5])
def test_rank_out_of_range_is_named(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"d={rank} is out of range: a projection of 4 numbers has 1 <= d <= 4"):
        ao.dense(torch.zeros(4), rank)
