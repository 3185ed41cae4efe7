"""Cases for the CUDA kernels, run as a script: on a GPU, or without one under Triton's interpreter.

Triton decides when it is imported whether it interprets, so the cases need a process of their own, with
TRITON_INTERPRET set where there is no GPU (see ``test_cuda_kernels.py``). For ``numbers``, prints a JSON list of
[case, largest relative error, tolerance]; for ``compile``, which needs no GPU, of [kernel, bytes spilled, PTX].
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

import reference
from orthotune.ops import approx_orthogonal as ao

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

Result = tuple[str, float, float]


def compare(name: str, dtype: torch.dtype, got: list[Tensor], want: list[Tensor]) -> Result:
    """The largest error among pairs of tensors; infinite where a dtype or a shape is not as it should be."""
    assert all(g.shape == w.shape and g.is_contiguous() for g, w in zip(got, want, strict=True)), name
    assert got[0].dtype == dtype, name
    errors = [reference.relative_error(g.cpu(), w) for g, w in zip(got, want, strict=True) if w.numel()]
    return name, max(errors, default=0.0), reference.TOLERANCE[dtype]


def leaves(*tensors: Tensor) -> list[Tensor]:
    """Float64 copies on the CPU that take gradients."""
    return [t.detach().cpu().double().requires_grad_() for t in tensors]


def rotation() -> Iterator[Result]:
    """Tokens, D, dtype of x: one block of columns and several, D of every residue, more row tiles than programs."""
    from orthotune.ops.cuda import rotation as cuda

    shapes = [(200, 3, F32), (1, 2, F16), (7, 33, F32), (0, 5, F32), (5, 70, F64), (3, 300, BF16)]
    if DEVICE == "cuda":
        shapes += [(1001, width, dtype) for width in (768, 3072, 5120, 11008) for dtype in (BF16, F32)]
    for tokens, width, dtype in shapes:
        yield from rotation_case(cuda, tokens, width, dtype)
    with mock.patch.object(cuda, "_per_lane", return_value=1):  # three levels of column blocks
        yield from rotation_case(cuda, 1, 1030, F32)


def rotation_case(cuda, tokens: int, width: int, dtype: torch.dtype) -> Iterator[Result]:  # type: ignore[no-untyped-def]
    parameter = torch.promote_types(dtype, F32)
    blocks = (torch.eye(2) + 0.3 * torch.randn(width - 1, 2, 2)).to(DEVICE, parameter)
    x, grad = (torch.randn(tokens, width).to(DEVICE, dtype) for _ in range(2))
    for transpose in (False, True):
        want_x, want_blocks = leaves(x, blocks)
        matrix = reference.givens_matrix(want_blocks, width)
        want = want_x @ (matrix.T if transpose else matrix)
        want.backward(grad.cpu().double())
        got = [cuda.rotate(x, blocks, transpose), *cuda.rotate_backward(x, grad, blocks, transpose)]
        yield compare(
            f"GOFT {tokens=} {width=} {dtype} {transpose=}", dtype, got, [want, want_x.grad, want_blocks.grad]
        )
        if tokens > 100:
            again = cuda.rotate_backward(x, grad, blocks, transpose)
            assert all(torch.equal(a, b) for a, b in zip(got[1:], again, strict=True))


def approx_orthogonal() -> Iterator[Result]:
    """Tokens, D, n, d, dtype: d from 1 to the width, more columns and more rows than a tile, both poles."""
    from orthotune.ops.cuda import approx_orthogonal as cuda

    shapes = [(5, 2, 3, 1, F32), (5, 7, 5, 5, F32), (70, 31, 90, 8, BF16), (33, 300, 20, 20, F16), (3, 1, 1, 1, F32)]
    shapes += [(0, 5, 6, 2, F32), (19, 33, 33, 33, F64), (3, 1500, 1100, 1050, F64)]
    if DEVICE == "cuda":
        shapes += [(1001, 768, 3072, 8, BF16), (1001, 4096, 4096, 512, BF16), (333, 11008, 4096, 1, F32)]
    for tokens, d_in, d_out, rank, dtype in shapes:
        parameter = torch.promote_types(dtype, F32)
        down, up = (ao.random_unit(width).to(DEVICE, parameter) * 1.2 for width in (d_in, d_out))
        scale = torch.randn(rank).to(DEVICE, parameter)
        yield approx_orthogonal_case(
            cuda, f"AOFT {tokens=} {d_in=} {d_out=} {rank=} {dtype}", tokens, dtype, down, up, scale
        )
    for tail in (0.0, 0.3):
        down, up = torch.tensor([-1.0, tail, 0.0, tail]), torch.tensor([3e-7 - 1, tail, 0.0])
        vectors = [v.to(DEVICE) for v in (down, up, torch.ones(2))]
        yield approx_orthogonal_case(cuda, f"AOFT pole {tail=}", 2, F32, *vectors)


def approx_orthogonal_case(  # type: ignore[no-untyped-def]
    cuda, name: str, tokens: int, dtype: torch.dtype, down: Tensor, up: Tensor, scale: Tensor
) -> Result:
    y, x, grad, grad_x = (torch.randn(tokens, len(vector)).to(DEVICE, dtype) for vector in (up, down, up, down))
    want_x, *vectors = leaves(x, down, up, scale)
    want = y.cpu().double() + ao.expand(ao.project(want_x, vectors[0], len(scale)) * vectors[2], vectors[1])
    want.backward(grad.cpu().double())
    assert want_x.grad is not None
    want_grad_x = grad_x.cpu().double() + want_x.grad
    got = cuda.add_update(y, x, down, up, scale)
    alone = cuda.add_update_backward(None, x, grad, down, up, scale)
    grads = cuda.add_update_backward(grad_x, x, grad, down, up, scale)
    assert all(torch.equal(a, b) for a, b in zip(alone, grads, strict=True))
    return compare(name, dtype, [got, grad_x, *grads], [want, want_grad_x, *(v.grad for v in vectors)])


def rescaling() -> Iterator[Result]:
    """Tokens, D, n, r, dtype: more rows and columns than a tile, tokens in slices.

    The interpreter multiplies the bits of bfloat16 matrices, so their product is for a GPU to test.
    """
    from orthotune.ops.cuda import rescaling as cuda

    shapes = [
        (5, 2, 3, 1, F32),
        (65, 270, 140, 3, F16),
        (19, 40, 33, 2, F64),
        (0, 5, 6, 2, F32),
        (1200, 33, 20, 1, F32),
    ]
    if DEVICE == "cuda":
        shapes += [(5001, 768, 768, 1, BF16), (1001, 3072, 768, 3, BF16), (1001, 4096, 4096, 20, BF16)]
    for tokens, d_in, d_out, rank, dtype in shapes:
        parameter = torch.promote_types(dtype, F32)
        x, grad, weight = (torch.randn(s).to(DEVICE, dtype) for s in ((tokens, d_in), (tokens, d_out), (d_out, d_in)))
        left = torch.randn(rank, d_in).to(DEVICE, parameter).T
        right = torch.randn(rank, d_out + 3).to(DEVICE, parameter)[:, 2:-1]
        name = f"RLRR {tokens=} {d_in=} {d_out=} {rank=} {dtype}"
        want_left, want_right = leaves(left, right)
        for residual in (False, True):
            want = reference.rlrr_weight(weight.cpu().double(), want_left, want_right, residual)
            yield compare(f"{name} {residual=}", dtype, [cuda.rescale(weight, left, right, residual)], [want])
        (x.cpu().double() @ want.T).backward(grad.cpu().double())
        got = cuda.gradients(x, grad, weight, left, right)
        yield compare(name, parameter, list(got), [want_left.grad, want_right.grad])


def compiled() -> Iterator[tuple[str, int, str]]:
    """Compile every kernel for a Hopper GPU, for bfloat16 activations of a width that the vectors' loads divide."""
    from orthotune.ops.cuda import approx_orthogonal, rescaling, rotation

    block = {"x_column": 1, "y_column": 1, "size": 256, "rows": 4, "coarse": True}
    for transpose in (False, True):
        options = {**block, "transpose": transpose}
        yield compile_kernel(rotation._rotate_kernel, {"x_ptr", "y_ptr"}, options, num_warps=1)
    columns = {"u_column": 1, "v_column": 1, "out_column": 1}
    yield compile_kernel(
        rotation._backward_kernel,
        {"u_ptr", "v_ptr", "out_ptr"},
        {**columns, "size": 256, "rows": 2, "coarse": True, "out_is_u": False},
        num_warps=1,
        maxnreg=rotation.BACKWARD_REGISTERS,
    )
    tile = dict(zip(("rows", "columns"), approx_orthogonal._tile_shape(4096, 4096), strict=True))
    warps = approx_orthogonal.WARPS
    yield compile_kernel(approx_orthogonal._add_kernel, {"y_ptr", "x_ptr", "out_ptr"}, tile, num_warps=warps)
    yield compile_kernel(
        approx_orthogonal._backward_kernel,
        {"grad_x_ptr", "x_ptr", "grad_ptr"},
        tile,
        num_warps=warps,
        maxnreg=approx_orthogonal.BACKWARD_REGISTERS,
    )
    factors = {"left_row": 1, "left_column": 1, "right_column": 1}
    options = {**factors, "residual": True, "rows": rescaling.TILE_ROWS, "columns": rescaling.TILE_COLUMNS}
    yield compile_kernel(rescaling._rescale_kernel, {"weight_ptr", "out_ptr"}, options, num_warps=4)
    tile = dict(zip(("rows", "columns", "depth"), rescaling._product_tile(2), strict=True))
    options = {**factors, **tile, "group": rescaling.GROUP, "precision": "ieee"}
    yield compile_kernel(rescaling._gradients_kernel, {"x_ptr", "grad_ptr", "weight_ptr"}, options, num_warps=8)


def compile_kernel(  # type: ignore[no-untyped-def]
    kernel, half: set[str], constants: dict[str, object], **options: object
) -> tuple[str, int, str]:
    """Compile with bfloat16 behind the pointers in ``half`` and float32 behind the others, sizes multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from orthotune.ops.cuda import OPTIONS

    types = {
        name: "i32" if not name.endswith("_ptr") else "*bf16" if name in half else "*fp32" for name in kernel.arg_names
    }
    signature = {name: "constexpr" if name in constants else kind for name, kind in types.items()}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name not in constants and name not in ("tokens", "rank")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={**options, **OPTIONS})
    spilled = re.search(r"(\d+) bytes spill stores", log.getvalue())
    assert result.asm["cubin"]
    assert spilled, "no log of ptxas: TRITON_DUMP_PTXAS_LOG is not set, or the cache was not empty"
    return kernel.__name__, int(spilled[1]), result.asm["ptx"]


if __name__ == "__main__":
    torch.manual_seed(0)
    chosen = {"numbers": [rotation, approx_orthogonal, rescaling], "compile": [compiled]}[sys.argv[1]]
    print(json.dumps([result for cases in chosen for result in cases()]))
