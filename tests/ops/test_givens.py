"""The rotation tree against an explicit product of dense rotations."""

from __future__ import annotations

import math

import pytest
import torch

import reference
from orthotune.ops import givens, rotation

DTYPES = [torch.float64, torch.float32]


def random_blocks(count: int, dtype: torch.dtype = torch.float64, quasi: bool = True) -> torch.Tensor:
    if quasi:
        return (torch.eye(2) + 0.3 * torch.randn(count, 2, 2)).to(dtype)
    return givens.rotation_blocks(torch.empty(count, dtype=dtype).uniform_(-math.pi, math.pi))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 7, 33, 129, 768, 1000])
def test_tree_has_width_minus_one_rotations_in_log_rounds(width: int) -> None:
    todo = list(givens.rounds(width))
    assert sum(pairs for _, _, pairs in todo) == width - 1
    assert len(todo) == math.ceil(math.log2(width))
    for stride, _, pairs in todo:
        assert (2 * (pairs - 1) + 1) * stride < width


@pytest.mark.parametrize("quasi", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", reference.WIDTHS)
def test_forward_and_gradients_match_dense(width: int, dtype: torch.dtype, quasi: bool) -> None:
    blocks = random_blocks(width - 1, quasi=quasi).requires_grad_()
    x = torch.randn(2, 3, width, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, width, dtype=torch.float64)
    want = x @ reference.givens_matrix(blocks, width)
    want.backward(target)

    low_blocks = blocks.detach().to(dtype).requires_grad_()
    low_x = x.detach().to(dtype).requires_grad_()
    got = givens.apply(low_x, low_blocks)
    got.backward(target.to(dtype))

    tolerance = reference.TOLERANCE[dtype]
    assert reference.relative_error(got, want) <= tolerance
    assert reference.relative_error(low_x.grad, x.grad) <= tolerance
    assert reference.relative_error(low_blocks.grad, blocks.grad) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_rounded_once(dtype: torch.dtype) -> None:
    x = torch.randn(5, 96).to(dtype)
    blocks = random_blocks(95, torch.float32, quasi=False)
    want = (x.float() @ reference.givens_matrix(blocks, 96)).to(dtype)
    got = givens.apply(x, blocks)
    assert got.dtype == dtype
    # one unit in the last place, where the float32 sums straddle a rounding boundary
    assert reference.relative_error(got, want) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("width", [2, 5, 31, 129, 768])
def test_transpose_is_the_transposed_matrix(width: int) -> None:
    blocks = random_blocks(width - 1)
    rows = torch.randn(4, width, dtype=torch.float64)
    want = rows @ reference.givens_matrix(blocks, width).T
    assert reference.relative_error(givens.apply(rows, blocks, transpose=True), want) < 1e-12


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("width", "trees"), [(2, 1), (3, 2), (7, 3), (33, 1), (140, 2), (4100, 1)])
def test_gradcheck(width: int, trees: int, transpose: bool) -> None:
    blocks = random_blocks(trees * (width - 1)).requires_grad_()
    x = torch.randn(2, width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, b: givens.apply(x, b, num_trees=trees, transpose=transpose),
        (x, blocks),
        fast_mode=width > 10,
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_operators_pass_opcheck() -> None:
    blocks = random_blocks(139).requires_grad_()
    x = torch.randn(2, 140, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.orthotune.stage_matrices.default, (blocks, 140))
    matrices = [m.detach().requires_grad_() for m in givens.stage_matrices(blocks, 140)]
    for transpose in (False, True):
        torch.library.opcheck(torch.ops.orthotune.rotate.default, (x, matrices, transpose))


@pytest.mark.parametrize("width", [2, 3, 31, 768, 3072])
def test_random_angles_are_orthogonal_in_float32(width: int) -> None:
    blocks = random_blocks(width - 1, torch.float32, quasi=False)
    assert givens.defect(blocks, width) <= 2e-6
    matrix = givens.dense(blocks, width).double()
    assert (matrix.T @ matrix - torch.eye(width)).abs().max() <= 2e-6


def test_defect_sees_a_block_that_is_not_a_rotation() -> None:
    blocks = givens.identity_blocks(9)
    blocks[3, 0, 1] = 0.5
    matrix = reference.givens_matrix(blocks, 10)
    want = (matrix.T @ matrix - torch.eye(10)).abs().max().item()
    assert givens.defect(blocks, 10, chunk=3) == pytest.approx(want)
    assert want > 0.4


@pytest.mark.parametrize("width", [5, 96])
def test_trees_compose_with_permuted_coordinates(width: int) -> None:
    blocks = random_blocks(3 * (width - 1))
    permute = torch.eye(width, dtype=torch.float64)[givens.permutation(width)]
    want = torch.eye(width, dtype=torch.float64)
    change = torch.eye(width, dtype=torch.float64)
    for tree in blocks.view(3, width - 1, 2, 2):
        want = want @ change.T @ reference.givens_matrix(tree, width) @ change
        change = permute @ change
    assert reference.relative_error(givens.dense(blocks, width, num_trees=3), want) < 1e-12


@pytest.mark.parametrize("width", [2, 3, 10, 768])
def test_permutation_is_one(width: int) -> None:
    assert sorted(givens.permutation(width).tolist()) == list(range(width))


def test_one_tree_carries_any_vector_to_the_first_axis() -> None:
    """The paper's theorem: d - 1 rotations suffice to carry one vector to another of the same norm."""
    width = 12
    vector = torch.randn(width, dtype=torch.float64)
    theta = torch.zeros(width - 1, dtype=torch.float64)
    current = vector.clone()
    for stride, first, pairs in givens.rounds(width):
        for k in range(pairs):
            i, j = 2 * k * stride, (2 * k + 1) * stride
            theta[first + k] = torch.atan2(-current[j], current[i])
            length = torch.hypot(current[i], current[j])
            current[i], current[j] = length, 0
    carried = givens.dense(givens.rotation_blocks(theta), width) @ vector
    want = torch.zeros(width, dtype=torch.float64)
    want[0] = vector.norm()
    assert torch.allclose(carried, want)


def test_penalty_is_the_sum_of_squared_inner_products() -> None:
    blocks = random_blocks(6)
    want = sum((b[0, 0] * b[0, 1] + b[1, 0] * b[1, 1]) ** 2 for b in blocks)
    assert torch.allclose(givens.penalty(blocks), want)
    assert givens.penalty(random_blocks(6, quasi=False)) < 1e-20


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2, 2\) do not fit: 1 tree\(s\) over width 6 take \(5, 2, 2\)"):
        givens.apply(torch.zeros(1, 6), torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match="at least 2 coordinates"):
        givens.stages(1)


def test_nothing_of_size_width_squared_is_made() -> None:
    """At D = 16,384 a D x D float32 matrix is 1 GiB; no tensor of the forward or backward comes near."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, list | tuple) else [result]:
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return result

    width = 16384
    blocks = random_blocks(width - 1, torch.float32).requires_grad_()
    x = torch.randn(4, width, requires_grad=True)
    matrices = givens.stage_matrices(blocks.detach(), width)
    with Watch():
        y = rotation._apply(x.detach(), matrices, False)
        rotation._gradients(x.detach(), y, matrices, False)
        givens.apply(x, blocks).sum().backward()
    assert largest <= 40 * width


@pytest.mark.parametrize("transpose", [False, True])
def test_work_in_chunks_adds_up(transpose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks(139).requires_grad_()
    x = torch.randn(50, 140, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(50, 140, dtype=torch.float64)
    whole = torch.autograd.grad(givens.apply(x, blocks, transpose=transpose), (x, blocks), grad)
    monkeypatch.setattr(rotation, "CHUNK", 1)
    assert len(list(rotation._chunks(50, 140))) > 1
    parts = torch.autograd.grad(givens.apply(x, blocks, transpose=transpose), (x, blocks), grad)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_an_empty_batch_is_fine() -> None:
    x = torch.zeros(0, 140, requires_grad=True)
    blocks = random_blocks(139, torch.float32).requires_grad_()
    givens.apply(x, blocks).sum().backward()
    assert x.grad is not None
    assert not blocks.grad.any()
