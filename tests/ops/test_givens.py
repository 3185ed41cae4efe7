"""The rotation tree against an explicit product of dense rotations."""

from __future__ import annotations

import math

import pytest
import torch

import reference
from orthotune.ops import givens, rotation, staged

DTYPES = [torch.float64, torch.float32]


def random_blocks(count: int, dtype: torch.dtype = torch.float64, quasi: bool = True) -> torch.Tensor:
    if quasi:
        return (torch.eye(2) + 0.3 * torch.randn(count, 2, 2)).to(dtype)
    return rotation.as_blocks(torch.empty(count, dtype=dtype).uniform_(-math.pi, math.pi))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 7, 33, 129, 768, 1000])
def test_tree_has_width_minus_one_rotations_in_log_rounds(width: int) -> None:
    todo = list(staged.rounds(width))
    assert sum(pairs for _, _, pairs in todo) == width - 1
    assert len(todo) == math.ceil(math.log2(width))
    for stride, _, pairs in todo:
        assert (2 * (pairs - 1) + 1) * stride < width


@pytest.mark.usefixtures("implementation")
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


@pytest.mark.parametrize("trees", [1, 2])
@pytest.mark.parametrize("transpose", [False, True])
def test_angles_are_the_blocks_they_make(trees: int, transpose: bool) -> None:
    theta = torch.empty(trees * 32, dtype=torch.float64).uniform_(-math.pi, math.pi).requires_grad_()
    x = torch.randn(4, 33, dtype=torch.float64)

    def run(rotations: torch.Tensor) -> torch.Tensor:
        return givens.apply(x, rotations, num_trees=trees, transpose=transpose)

    want = run(reference.rotation_blocks(theta))
    assert torch.allclose(run(theta), want)
    grad = torch.randn_like(want)
    (wanted,) = torch.autograd.grad(want, theta, grad)
    assert torch.allclose(*torch.autograd.grad(run(theta), theta, grad), wanted)
    assert torch.autograd.gradcheck(run, theta, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_rounded_once(dtype: torch.dtype) -> None:
    x = torch.randn(5, 96).to(dtype)
    blocks = random_blocks(95, torch.float32, quasi=False)
    want = (x.float() @ reference.givens_matrix(blocks, 96)).to(dtype)
    got = givens.apply(x, blocks)
    assert got.dtype == dtype
    # one unit in the last place, where the float32 sums straddle a rounding boundary
    assert reference.relative_error(got, want) <= torch.finfo(dtype).eps


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("width", [2, 5, 31, 129, 768])
def test_transpose_is_the_transposed_matrix(width: int) -> None:
    blocks = random_blocks(width - 1)
    rows = torch.randn(4, width, dtype=torch.float64)
    want = rows @ reference.givens_matrix(blocks, width).T
    assert reference.relative_error(givens.apply(rows, blocks, transpose=True), want) < 1e-12


@pytest.mark.usefixtures("implementation")
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
    for transpose in (False, True):
        torch.library.opcheck(torch.ops.orthotune.rotate.default, (x, blocks, transpose))
    for tokens in (2, 20):
        x = torch.randn(tokens, 140, dtype=torch.float64, requires_grad=True)
        weight, bias = torch.randn(5, 140, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
        torch.library.opcheck(torch.ops.orthotune.rotated_linear.default, (x, weight, bias, blocks))


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


LAYOUT = [(0, False), (0, True), (2, True), (1, False)]


@pytest.mark.parametrize("width", [3, 96])
def test_trees_in_a_layout_of_their_own(width: int) -> None:
    blocks = random_blocks(4 * (width - 1))
    permute = torch.eye(width, dtype=torch.float64)[givens.permutation(width)]
    want = torch.eye(width, dtype=torch.float64)
    for tree, (power, transposed) in zip(blocks.view(4, width - 1, 2, 2), LAYOUT, strict=True):
        matrix, change = reference.givens_matrix(tree, width), torch.linalg.matrix_power(permute, power)
        want = want @ change.T @ (matrix.T if transposed else matrix) @ change
    x = torch.randn(4, width, dtype=torch.float64)
    assert reference.relative_error(givens.apply(x, blocks, layout=LAYOUT), x @ want) < 1e-12
    assert reference.relative_error(givens.apply(x, blocks, layout=LAYOUT, transpose=True), x @ want.T) < 1e-12
    assert givens.defect(blocks, width, layout=LAYOUT) == pytest.approx((want.T @ want - torch.eye(width)).abs().max())


@pytest.mark.parametrize("transpose", [False, True])
def test_gradcheck_in_a_layout(transpose: bool) -> None:
    blocks = random_blocks(4 * 6).requires_grad_()
    x = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: givens.apply(x, b, layout=LAYOUT, transpose=transpose), (x, blocks))


@pytest.mark.parametrize("sign", [1, -1])
def test_polar_form_and_inverse_transpose(sign: int) -> None:
    blocks = random_blocks(50)
    blocks[:, :, 1] *= blocks.det().sign()[:, None]
    blocks[0], blocks[1] = 2 * torch.eye(2), reference.rotation_blocks(torch.tensor([2.5]))[0]
    angle, log_stretch = givens.polar(blocks)
    assert reference.relative_error(givens.from_polar(angle, log_stretch), blocks) < 1e-12
    assert torch.allclose(log_stretch, log_stretch.mT, atol=1e-15)
    assert torch.allclose(givens.inverse_transpose(blocks), blocks.inverse().mT)
    blocks[:, :, 1] *= sign
    assert bool(givens.polar(blocks)[1].isfinite().all()) == (sign > 0)


@pytest.mark.parametrize("width", [2, 3, 10, 768])
def test_permutation_is_one(width: int) -> None:
    assert sorted(givens.permutation(width).tolist()) == list(range(width))


def test_one_tree_carries_any_vector_to_the_first_axis() -> None:
    """The paper's theorem: d - 1 rotations suffice to carry one vector to another of the same norm."""
    width = 12
    vector = torch.randn(width, dtype=torch.float64)
    theta = torch.zeros(width - 1, dtype=torch.float64)
    current = vector.clone()
    for stride, first, pairs in staged.rounds(width):
        for k in range(pairs):
            i, j = 2 * k * stride, (2 * k + 1) * stride
            theta[first + k] = torch.atan2(-current[j], current[i])
            length = torch.hypot(current[i], current[j])
            current[i], current[j] = length, 0
    carried = givens.dense(rotation.as_blocks(theta), width) @ vector
    want = torch.zeros(width, dtype=torch.float64)
    want[0] = vector.norm()
    assert torch.allclose(carried, want)


def test_penalty_is_the_sum_of_squared_inner_products() -> None:
    blocks = random_blocks(6)
    want = sum((b[0, 0] * b[0, 1] + b[1, 0] * b[1, 1]) ** 2 for b in blocks)
    assert torch.allclose(givens.penalty(blocks), want)
    assert givens.penalty(random_blocks(6, quasi=False)) < 1e-20


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"\(4, 2, 2\) do not fit: 1 tree\(s\) over width 6 take \(5, 2, 2\) blocks or \(5,\) angles"
    ):
        givens.apply(torch.zeros(1, 6), torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match="at least 2 coordinates"):
        givens.apply(torch.zeros(3, 1), torch.zeros(0, 2, 2))


def test_stage_matrices_multiply_out_to_the_rotation() -> None:
    """The staged form, on its own: gradients of the matrices reach the rotations."""
    for width in (2, 5, 33, 140, 4100):
        blocks = random_blocks(width - 1)
        grads = [torch.randn_like(matrix) for matrix in staged.matrices(blocks, width)]
        got = staged.matrices_backward(blocks, grads, width)
        step = torch.randn_like(blocks)
        shifted = [staged.matrices(blocks + sign * 1e-6 * step, width) for sign in (1, -1)]
        want = sum(((a - b) * g).sum() for a, b, g in zip(*shifted, grads, strict=True)) / 2e-6
        assert (got * step).sum().item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("transpose", [False, True])
def test_work_in_chunks_adds_up(transpose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHOTUNE_CPU_KERNELS", "0")
    blocks = random_blocks(139).requires_grad_()
    x = torch.randn(50, 140, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(50, 140, dtype=torch.float64)
    whole = torch.autograd.grad(givens.apply(x, blocks, transpose=transpose), (x, blocks), grad)
    monkeypatch.setattr(staged, "CHUNK", 1)
    assert len(list(staged.chunks(50, 140))) > 1
    parts = torch.autograd.grad(givens.apply(x, blocks, transpose=transpose), (x, blocks), grad)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_in_chunks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "CHUNK", 1)
    x, blocks = torch.randn(50, 96).to(dtype).requires_grad_(), random_blocks(95, torch.float32).requires_grad_()
    grad = torch.randn(50, 96).to(dtype)
    got = torch.autograd.grad(givens.apply(x, blocks), (x, blocks), grad)
    exact = [t.detach().double().requires_grad_() for t in (x, blocks)]
    want = torch.autograd.grad(exact[0] @ reference.givens_matrix(exact[1], 96), exact, grad.double())
    for a, b in zip(got, want, strict=True):
        assert reference.relative_error(a, b) <= reference.TOLERANCE[dtype]
