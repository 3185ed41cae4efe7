"""Nothing makes a D x D matrix: peak memory at D = 16,384, where one is 1 GiB in float32, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import gc, json
from pathlib import Path
import torch
from peft import get_peft_model
from torch import nn
from orthotune import AOFTConfig, GOFTConfig, RLRRConfig

CONFIGS = {
    "goft": lambda: GOFTConfig(target_modules=["0"]),
    "qgoft": lambda: GOFTConfig(target_modules=["0"], quasi=True),
    "goft-3-trees": lambda: GOFTConfig(target_modules=["0"], num_trees=3),
    "rlrr": lambda: RLRRConfig(target_modules=["0"], shift=False),
    "aoft": lambda: AOFTConfig(target_modules=["0"]),
}
WIDTH = 16384

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

def growth(name, task, out, tokens):
    base = nn.utils.skip_init(nn.Linear, WIDTH, out, bias=False)
    nn.init.zeros_(base.weight)
    model = get_peft_model(nn.Sequential(base), CONFIGS[name]())
    x = torch.ones(tokens, WIDTH, requires_grad=True)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = memory("VmRSS")
    if task == "train":
        model(x).sum().backward()
    elif task == "merge":
        model.merge_and_unload(safe_merge=True)
    else:
        with torch.no_grad():
            model.eval()(x)
    return memory("VmHWM") - before

growth("goft", "train", 64, 32)  # what libraries load on the way does not count
found = {}
for name in CONFIGS:
    for task in ("train", "merge", "evaluate"):
        found[f"{name} {task} wide"] = growth(name, task, 64, 32)
for name in ("goft", "rlrr", "aoft"):
    found[f"{name} train square"] = growth(name, "train", WIDTH, 16)
for name in ("goft", "aoft"):
    found[f"{name} train weight-side"] = growth(name, "train", 512, 1024)
print(json.dumps(found))
"""

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def growth() -> dict[str, float]:
    """Return the growth of resident memory at its peak, in MiB, of each case."""
    # memory that is freed goes back at once, so that none of it hides what the next case takes
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("task", ["train", "merge", "evaluate"])
@pytest.mark.parametrize("name", ["goft", "qgoft", "goft-3-trees", "rlrr", "aoft"])
def test_a_wide_layer(name: str, task: str, growth: dict[str, float]) -> None:
    """With 64 outputs and 32 tokens: the weight is 4 MiB, the input 2 MiB."""
    assert growth[f"{name} {task} wide"] < 48


@pytest.mark.parametrize("name", ["goft", "rlrr", "aoft"])
def test_a_square_layer_in_training(name: str, growth: dict[str, float]) -> None:
    """The weight itself is 1 GiB; training adds a few slices of 16 MiB, also in the method that forms W*."""
    assert growth[f"{name} train square"] < 128


@pytest.mark.parametrize("name", ["goft", "aoft"])
def test_the_weight_side(name: str, growth: dict[str, float]) -> None:
    """With more tokens than outputs the weight is adapted, in slices; the input is 64 MiB, its gradient too."""
    assert growth[f"{name} train weight-side"] < 3 * 64
