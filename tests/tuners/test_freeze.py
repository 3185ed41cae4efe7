"""qGOFT with part of its freedom held: what the blocks are, at awkward places too. The rest runs over every case."""

from __future__ import annotations

import peft
import pytest
import torch

import reference
from orthotune import GOFTConfig, InputError, regularization_loss
from orthotune.ops import givens
from tuners import cases


@pytest.mark.parametrize("freeze", ["norm", "angle"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_held_blocks_and_their_gradient(freeze: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stored = torch.randn(50, 2, 2, dtype=torch.float64)
    grad = torch.randn(50, 2, 2, dtype=torch.float64)
    wide, own = stored.clone().requires_grad_(), stored.to(dtype).requires_grad_()
    want, got = reference.held_blocks(wide, freeze), givens.hold(own, freeze)
    want.backward(grad)
    got.backward(grad.to(dtype))
    assert got.dtype == dtype
    assert reference.relative_error(got, want) < reference.TOLERANCE[dtype]
    assert reference.relative_error(own.grad, wide.grad) < reference.TOLERANCE[dtype]
    assert (
        reference.relative_error(givens.hold(got, freeze), got) < reference.TOLERANCE[dtype]
    )  # a second time changes nothing


def test_what_is_held() -> None:
    torch.manual_seed(0)
    stored = torch.randn(50, 2, 2, dtype=torch.float64)
    norm, angle = givens.hold(stored, "norm"), givens.hold(stored, "angle")
    assert torch.allclose(norm.norm(dim=-2), torch.ones(50, 2).double())
    assert givens.penalty(norm) > 1
    assert torch.allclose(angle.norm(dim=-2), stored.norm(dim=-2))
    assert givens.penalty(angle) < 1e-25
    assert torch.equal(angle[..., 0], stored[..., 0])
    assert (torch.linalg.det(angle) > 0).all()
    assert givens.hold(stored, None) is stored


@pytest.mark.parametrize("freeze", ["norm", "angle"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-13, 1e-11])
@pytest.mark.parametrize("columns", [[0], [1], [0, 1]])
def test_columns_of_no_length_stay_finite(freeze: str, size: float, columns: list[int]) -> None:
    blocks = torch.eye(2)[None].clone()
    blocks[..., columns] *= size
    blocks.requires_grad_()
    held = givens.hold(blocks, freeze)
    held.sum().backward()
    assert held.isfinite().all()
    assert blocks.grad.isfinite().all()
    if freeze == "norm":
        assert torch.allclose(held, torch.eye(2)[None])


def test_angle_has_no_penalty_and_norm_has_one() -> None:
    base, _ = cases.model_and_input("linear")
    config = GOFTConfig(quasi=True, freeze="norm", target_modules=["first"], init_weights=False, reg_lambda=0.5)
    model = peft.get_peft_model(base, config, "norm")
    held = reference.held_blocks(model.base_model.model.first.goft_block["norm"], "norm")
    want = 0.5 * (held[..., 0] * held[..., 1]).sum(-1).square().sum()
    assert torch.allclose(regularization_loss(model), want)
    regularization_loss(model).backward()
    assert model.base_model.model.first.goft_block["norm"].grad.abs().sum() > 0
    model.add_adapter("angle", GOFTConfig(quasi=True, freeze="angle", target_modules=["first"], init_weights=False))
    model.set_adapter("angle")
    assert not regularization_loss(model).requires_grad
    assert regularization_loss(model) == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"freeze": "norm"}, "freeze='norm' needs quasi=True"),
        ({"freeze": "angles", "quasi": True}, "freeze='angles' is not one of .*did you mean 'angle'"),
        ({"permutations": [0, 1]}, r"permutations=\[0, 1\] is out of range: .* each of num_trees=1"),
        ({"permutations": [-1]}, r"permutations=\[-1\] is out of range: a whole number of at least 0"),
        ({"transposed": [1]}, r"transposed=\[1\] is out of range: true or false for each"),
    ],
)
def test_bad_values(kwargs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GOFTConfig(**kwargs)
