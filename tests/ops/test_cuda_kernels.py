"""The CUDA kernels: their numbers, on a GPU or interpreted, and that they compile for a Hopper GPU without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run(command: str, cache: Path, **env: str) -> list:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("cuda_cases.py")), command],
        env={**inherited, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache), **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("operator", ["rotation", "approx_orthogonal", "rescaling"])
def test_kernels_match_dense(operator: str, tmp_path: Path) -> None:
    results = run(operator, tmp_path, **({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}))
    assert len(results) >= 10
    assert not {name: error for name, error, tolerance in results if not error <= tolerance}


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings the assembler on Linux alone")
def test_kernels_compile_for_hopper(tmp_path: Path) -> None:
    """Down to machine code: forward kernels in registers, rotations between lanes, products on tensor cores."""
    results = run("compile", tmp_path, TRITON_DUMP_PTXAS_LOG="1")
    spilled = {name: size for name, size, _ in results}
    code = {name: ptx for name, _, ptx in results}
    assert {name: spilled[name] for name in spilled if "backward" not in name and "gradients" not in name} == {
        "_rotate_kernel": 0,
        "_add_kernel": 0,
        "_rescale_kernel": 0,
    }
    assert "shfl.sync" in code["_rotate_kernel"]
    assert "wgmma.mma_async" in code["_gradients_kernel"]
    assert not any("atom." in ptx or "red.global" in ptx for ptx in code.values())
