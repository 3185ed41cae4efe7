"""Training in two processes equals training in one: DDP and FSDP2, over gloo on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from distributed.training import CASES, base_model, evaluate

pytestmark = pytest.mark.slow  # three launches, of a minute together

TESTS = Path(__file__).parents[1]
# float64: what differs is the order in which gradients are added up. Llama's own norms and loss are in float32 always.
TOLERANCE = {"bert": 1e-12, "convnet": 1e-12, "llama": 2e-6}

Runs = Callable[[str], Path]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Train under a strategy, all its cases in one launch, and return the folder of the results."""
    folders: dict[str, Path] = {}

    def run(strategy: str) -> Path:
        if strategy not in folders:
            folders[strategy] = tmp_path_factory.mktemp(strategy)
            command = [sys.executable, "-m", "distributed.worker", strategy, str(folders[strategy])]
            paths = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")])
            settings = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
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


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(runs: Runs, strategy: str, name: str) -> None:
    atol = TOLERANCE[CASES[name].model]
    for file in ("record", "adapter_model"):
        want, got = (load_file(runs(s) / name / f"{file}.safetensors") for s in ("alone", strategy))
        torch.testing.assert_close(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_there_was_something_to_compare(runs: Runs, name: str) -> None:
    record = load_file(runs("alone") / name / "record.safetensors")
    for earlier, later in (("before", "after"), ("after", "last")):
        assert (record[f"evaluated_{earlier}"] - record[f"evaluated_{later}"]).abs().max() > 1e-4
    assert (record["penalty"] > 0.01) == ("qgoft" in name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", CASES)
def test_saved_adapter_loads_into_a_plain_model(runs: Runs, strategy: str, name: str) -> None:
    case, folder = CASES[name], runs(strategy) / name
    record = load_file(folder / "record.safetensors")
    plain = PeftModel.from_pretrained(base_model(case.model), str(folder)).double()
    atol = 2e-6  # PEFT makes an adapter in float32 before it loads it
    torch.testing.assert_close(evaluate(case, plain), record["evaluated_last"], rtol=0, atol=atol)
    # a classifier that was trained beside the adapter stays wrapped, so merging goes through the whole model
    merged = plain.merge_and_unload()
    torch.testing.assert_close(evaluate(case, merged), record["evaluated_last"], rtol=0, atol=atol)
