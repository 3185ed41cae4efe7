"""Compiling the CPU's kernels, and doing without."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from orthotune.ops import givens
from orthotune.ops.cpu import build, kernels

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "orthotune"


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_source_compiles_where_there_is_a_compiler(dtype: torch.dtype) -> None:
    assert kernels(torch.empty(0, dtype=dtype)) is not None


@needs_compiler
def test_compiled_once_then_found_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build.compiled("float")
    assert library is not None
    assert library.parent == cache
    assert [p.name for p in cache.iterdir()] == [library.name]
    monkeypatch.setattr(build.subprocess, "run", None)
    assert build.compiled("float") == library


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("compiler", ["false", "/nowhere/c++"])
def test_a_failing_compiler_is_logged(
    compiler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.INFO, logger=build.__name__):
        assert build.compiled("float") is None
    assert "could not be compiled" in caplog.text
    assert compiler in caplog.text


def test_no_compiler_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO, logger=build.__name__):
        assert build.compiled("float") is None
    assert "no C++ compiler was found" in caplog.text


def test_there_are_none_for_half_precision_or_when_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels(torch.empty(0, dtype=torch.bfloat16)) is None
    assert kernels(torch.empty(0, device="meta")) is None
    monkeypatch.setenv("ORTHOTUNE_CPU_KERNELS", "0")
    assert kernels(torch.empty(0)) is None


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_rows(threads: int) -> None:
    torch.manual_seed(0)
    blocks = (torch.eye(2) + 0.3 * torch.randn(95, 2, 2)).double().requires_grad_()
    x, grad = torch.randn(130, 96).double().requires_grad_(), torch.randn(130, 96).double()

    def run() -> tuple[torch.Tensor, ...]:
        y = givens.apply(x, blocks)
        return y, *torch.autograd.grad(y, (x, blocks), grad)

    before, want = torch.get_num_threads(), run()
    try:
        torch.set_num_threads(threads)
        got, again = run(), run()
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(got, want, again, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
        assert torch.equal(a, c)
