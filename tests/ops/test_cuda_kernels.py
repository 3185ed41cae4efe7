"""The CUDA kernels: their numbers, on a GPU or interpreted, and that they compile for a Hopper GPU without one."""

from __future__ import annotations

import json
import os
import re
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


def test_kernels_match_dense(tmp_path: Path) -> None:
    results = run("numbers", tmp_path, **({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}))
    assert {name.split()[0] for name, _, _ in results} == {"GOFT", "AOFT", "RLRR"}
    assert not {name: error for name, error, tolerance in results if not error <= tolerance}


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings the assembler on Linux alone")
def test_kernels_compile_for_hopper(tmp_path: Path) -> None:
    """Down to machine code: forward kernels in registers, rotations between lanes, products on tensor cores."""
    results = run("compile", tmp_path, TRITON_DUMP_PTXAS_LOG="1")
    assert {name for name, spilled, _ in results if spilled} <= {"_backward_kernel", "_gradients_kernel"}
    code = {name: ptx for name, _, ptx in results}
    assert "shfl.sync" in code["_rotate_kernel"]
    assert "wgmma.mma_async" in code["_gradients_kernel"]
    assert not [name for name, ptx in code.items() if re.search(r"\b(atom|red)\.", ptx)]
