"""The adapted linear operators, on the activation side and on the weight side, whole and in slices, against dense."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import reference
from orthotune.ops import approx_orthogonal, plan, rescaling, rotation

WIDTH, OUT, RANK = 37, 21, 5
Leaves = tuple[Tensor, ...]


def _rotations() -> Leaves:
    return ((torch.eye(2) + 0.3 * torch.randn(WIDTH - 1, 2, 2)).double(),)


def _projections() -> Leaves:
    return tuple(t.double() for t in (torch.randn(WIDTH), torch.randn(OUT), torch.randn(RANK)))


def _factors() -> Leaves:
    return torch.randn(WIDTH, RANK).double(), torch.randn(RANK, OUT).double()


METHODS: dict[str, tuple[Callable[[], Leaves], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "rotation": (_rotations, rotation.rotated_linear, reference.goft_weight),
    "approx_orthogonal": (_projections, approx_orthogonal.linear_with_update, reference.aoft_weight),
    "rescaling": (_factors, rescaling.rescaled_linear, reference.rlrr_weight),
}


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TINY", 0)
    torch.manual_seed(0)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("tokens", [3, 200])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_output_and_gradients_match_dense(
    method: str, dtype: torch.dtype, with_bias: bool, tokens: int, slices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slices:
        monkeypatch.setattr(plan, "WEIGHT_CHUNK", 1)
        monkeypatch.setattr(plan, "MIN_ROWS", 4)
    start, operator, dense_weight = METHODS[method]
    weight, bias = torch.randn(OUT, WIDTH).double(), torch.randn(OUT).double().requires_grad_() if with_bias else None
    x = torch.randn(2, tokens, WIDTH).double().requires_grad_()
    leaves = [leaf.requires_grad_() for leaf in start()]
    want = torch.nn.functional.linear(x, dense_weight(weight, *leaves), bias)
    grad = torch.randn_like(want)
    want.backward(grad)

    low = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (x, bias, *leaves)]
    got = operator(low[0], weight.to(dtype), low[1], *low[2:])
    got.backward(grad.to(dtype))
    assert got.dtype == dtype
    assert reference.relative_error(got, want) <= reference.TOLERANCE[dtype]
    for mine, exact in zip(low, (x, bias, *leaves), strict=True):
        if mine is not None:
            assert reference.relative_error(mine.grad, exact.grad) <= reference.TOLERANCE[dtype]


@pytest.mark.parametrize("method", METHODS)
def test_weight_stored_transposed(method: str) -> None:
    start, operator, dense_weight = METHODS[method]
    weight, x = torch.randn(WIDTH, OUT).double().T, torch.randn(200, WIDTH).double()
    leaves = start()
    assert torch.allclose(operator(x, weight, None, *leaves), x @ dense_weight(weight, *leaves).T)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(method: str, tokens: int) -> None:
    start, operator, _ = METHODS[method]
    leaves = [leaf.requires_grad_() for leaf in start()]
    x = torch.randn(tokens, WIDTH).double().requires_grad_()
    y = operator(x, torch.randn(OUT, WIDTH).double(), None, *leaves)
    y.sum().backward()
    assert y.shape == (tokens, OUT)
    for leaf in (x, *leaves):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_frozen_weight_is_refused(method: str) -> None:
    start, operator, _ = METHODS[method]
    weight = torch.randn(OUT, WIDTH).double().requires_grad_()
    with pytest.raises(NotImplementedError, match="frozen"):
        operator(torch.randn(4, WIDTH).double(), weight, None, *start()).sum().backward()


@pytest.mark.parametrize("method", METHODS)
def test_the_backward_keeps_its_inputs_alone(method: str) -> None:
    """What the adapter of one layer keeps: x, and parameters that exist anyway."""
    start, operator, _ = METHODS[method]
    leaves = [leaf.requires_grad_() for leaf in start()]
    x, weight = torch.randn(200, WIDTH).double().requires_grad_(), torch.randn(OUT, WIDTH).double()
    known = {t.untyped_storage().data_ptr() for t in (x, weight, *leaves)}
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t.untyped_storage().data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        operator(x, weight, None, *leaves)
    assert kept
    assert set(kept) <= known


def test_plan_takes_the_side_that_moves_fewer_numbers() -> None:
    weight = torch.zeros(768, 768)
    passes = {"x_passes": 2, "y_passes": 0, "weight_passes": 2}
    assert plan.on_weight_side(torch.zeros(1576, 768), weight, **passes)
    assert not plan.on_weight_side(torch.zeros(200, 768), weight, **passes)
    assert not plan.on_weight_side(torch.zeros(1576, 768), torch.zeros(3072, 768), **passes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_plan_keeps_an_update_out_of_a_half_precision_weight(dtype: torch.dtype) -> None:
    x, weight = torch.zeros(5000, 8, dtype=dtype), torch.zeros(8, 8, dtype=dtype)
    assert not plan.on_weight_side(x, weight, x_passes=2, y_passes=0, weight_passes=2)


def test_plan_cuts_a_weight_into_slices_of_its_rows() -> None:
    assert plan.weight_rows(torch.zeros(3072, 768)) == [slice(0, 5461)]
    rows = plan.weight_rows(torch.zeros(700, 16384, device="meta"))
    assert [(r.start, r.stop) for r in rows] == [(0, 256), (256, 512), (512, 768)]
