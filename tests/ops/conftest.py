"""The operators' implementations on a CPU: the compiled kernels and PyTorch."""

from __future__ import annotations

import pytest
import torch

from orthotune.ops.cpu import kernels


@pytest.fixture(params=["compiled", "pytorch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test once with the compiled kernels and once without."""
    monkeypatch.setenv("ORTHOTUNE_CPU_KERNELS", "0" if request.param == "pytorch" else "1")
    if request.param == "compiled" and kernels(torch.empty(0)) is None:
        pytest.skip("no C++ compiler with OpenMP")
    return request.param
