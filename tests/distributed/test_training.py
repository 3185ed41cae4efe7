"""Training in two processes equals training in one: DDP, FSDP2 and DeepSpeed's ZeRO, over gloo on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from distributed.training import CASES, Case, base_model, evaluate

TESTS = Path(__file__).parents[1]
# what differs is the order in which gradients are added up: in float64, and in float32 for DeepSpeed. Llama's own norms
# and loss are in float32 always.
TOLERANCE = {"ddp": 1e-12, "fsdp2": 1e-12, "zero2": 2e-5, "zero3": 2e-5}
LLAMA = 2e-6
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")

# DeepSpeed takes gradient accumulation from its own configuration, once a process
WHOLE_BATCHES = [name for name, case in CASES.items() if case.micro_batches == 1]
# one test a case, but FSDP takes a second for each: those that differ in what is sharded
SHARDED = ["bert-goft", "bert-qgoft-2-micro-batches", "bert-rlrr", "bert-aoft-no-scale", "llama-qgoft-checkpointing"]
SHARDED += ["llama-aoft-checkpointing", "convnet-goft", "convnet-qgoft", "convnet-rlrr", "convnet-aoft"]
PLAN = {"alone": list(CASES), "ddp": list(CASES), "fsdp2": SHARDED, "zero2": [], "zero3": []}

Runs = Callable[[str], Path]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Train under a strategy, all its cases in one launch, and return the folder of the results."""
    folders: dict[str, Path] = {}

    def run(strategy: str) -> Path:
        if strategy not in folders:
            folders[strategy] = tmp_path_factory.mktemp(strategy)
            command = [sys.executable, "-m", "distributed.worker", strategy, str(folders[strategy]), *PLAN[strategy]]
            paths = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")])
            settings = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            ended = subprocess.run(
                command,
                env={**os.environ, **settings, "PYTHONPATH": paths},
                capture_output=True,
                text=True,
                timeout=500,
                check=False,
            )
            assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
        return folders[strategy]

    return run


def parametrised(*strategies: str) -> pytest.MarkDecorator:
    """Give a test every case of the strategies."""
    marks = {"zero2": [needs_deepspeed, pytest.mark.slow], "zero3": [needs_deepspeed, pytest.mark.slow]}
    pairs = [pytest.param(s, name, marks=marks.get(s, [])) for s in strategies for name in PLAN[s]]
    return pytest.mark.parametrize(("strategy", "name"), pairs)


def tolerance(strategy: str, case: Case) -> float:
    return max(TOLERANCE[strategy], LLAMA if case.model == "llama" else 0)


TOGETHER = ("ddp", "fsdp2", "zero2", "zero3")


@parametrised(*TOGETHER)
def test_equals_one_process(runs: Runs, strategy: str, name: str) -> None:
    atol = tolerance(strategy, CASES[name])
    for file in ("record", "adapter_model"):
        want, got = (load_file(runs(s) / name / f"{file}.safetensors") for s in ("alone", strategy))
        torch.testing.assert_close(got, want, rtol=0, atol=atol, check_dtype=False)


@parametrised("alone")
def test_there_was_something_to_compare(runs: Runs, strategy: str, name: str) -> None:
    record = load_file(runs(strategy) / name / "record.safetensors")
    for earlier, later in (("before", "after"), ("after", "last")):
        assert (record[f"evaluated_{earlier}"] - record[f"evaluated_{later}"]).abs().max() > 1e-4
    assert (record["penalty"] > 0.01) == ("qgoft" in name)


@parametrised(*TOGETHER)
def test_saved_adapter_loads_into_a_plain_model(runs: Runs, strategy: str, name: str) -> None:
    case, folder = CASES[name], runs(strategy) / name
    record = load_file(folder / "record.safetensors")
    dtype = record["evaluated_last"].dtype
    plain = PeftModel.from_pretrained(base_model(case.model, dtype), str(folder)).to(dtype)
    atol = tolerance(strategy, case)
    torch.testing.assert_close(evaluate(case, plain, dtype), record["evaluated_last"], rtol=0, atol=atol)
    # a classifier that was trained beside the adapter stays wrapped, so merging goes through the whole model
    merged = plain.merge_and_unload()
    torch.testing.assert_close(evaluate(case, merged, dtype), record["evaluated_last"], rtol=0, atol=max(atol, 1e-12))
