"""RLRR's rescaled layer against the explicit weight."""

from __future__ import annotations

import pytest
import torch

import reference
from orthotune.ops import rescaling


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("width", "out", "rank"), [(2, 3, 1), (3, 2, 2), (7, 5, 1), (31, 10, 4), (768, 96, 1), (96, 3072, 3)]
)
def test_forward_and_gradients_match_dense(width: int, out: int, rank: int, dtype: torch.dtype, residual: bool) -> None:
    shapes = [(2, 4, width), (out, width), (out,), (width, rank), (rank, out)]
    wanted = [torch.randn(s, dtype=torch.float64, requires_grad=i != 1) for i, s in enumerate(shapes)]
    x, weight, bias, left, right = wanted
    want = x @ reference.rlrr_weight(weight, left, right, residual).T + bias
    grad = torch.randn_like(want)
    want.backward(grad)
    args = [a.detach().to(dtype).requires_grad_(a.requires_grad) for a in wanted]
    got = rescaling.rescaled_linear(*args, residual)
    got.backward(grad.to(dtype))
    assert reference.relative_error(got, want) <= reference.TOLERANCE[dtype]
    for low, high in zip(args, wanted, strict=True):
        if high.requires_grad:
            assert reference.relative_error(low.grad, high.grad) <= reference.TOLERANCE[dtype]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(residual: bool, with_bias: bool) -> None:
    weight = torch.randn(4, 3, dtype=torch.float64)
    shapes = [(2, 3), (3, 2), (2, 4), (4,)]
    x, left, right, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)

    def run(x: torch.Tensor, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return rescaling.rescaled_linear(x, weight, bias if with_bias else None, left, right, residual)

    assert torch.autograd.gradcheck(run, (x, left, right, bias))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_operator_passes_opcheck() -> None:
    shapes = [(2, 3), (4, 3), (4,), (3, 2), (2, 4)]
    args = [torch.randn(s, dtype=torch.float64, requires_grad=i != 1) for i, s in enumerate(shapes)]
    torch.library.opcheck(torch.ops.orthotune.rescaled_linear.default, (*args, True))


def test_only_the_input_is_kept_for_the_backward() -> None:
    kept: list[tuple[int, ...]] = []
    x, weight = torch.randn(50, 30, requires_grad=True), torch.randn(20, 30)
    left, right = torch.randn(30, 1, requires_grad=True), torch.randn(1, 20, requires_grad=True)

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        rescaling.rescaled_linear(x, weight, None, left, right)
    assert sorted(kept) == sorted([(50, 30), (20, 30), (30, 1), (1, 20)])


def test_a_gradient_of_the_frozen_weight_is_refused() -> None:
    weight = torch.randn(2, 3, requires_grad=True)
    y = rescaling.rescaled_linear(torch.randn(1, 3), weight, None, torch.zeros(3, 1), torch.zeros(1, 2))
    with pytest.raises(NotImplementedError, match="frozen"):
        y.sum().backward()
