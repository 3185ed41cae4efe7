"""The image benchmark: a small run through the command line, which images its runs see, and its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from training.tiny import write_digits

RUN = Path(__file__).parents[2] / "benchmarks" / "accuracy" / "run.py"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of linear and lora on two folders: 4 images a class to train on, 3 to test on, one seed."""
    root = tmp_path_factory.mktemp("accuracy")
    model = "vit_tiny_patch16_224"
    save_file(timm.create_model(model).state_dict(), root / "weights.safetensors")
    data = [write_digits(root / name, train=10) for name in ("first", "second")]
    values = ["--model", model, "--weights", root / "weights.safetensors", "--data", *data, "--out", root / "out"]
    values += ["--methods", "lora", "linear", "--image-size", 16, "--images-per-class", 4, 3, "--seeds", 0]
    values += ["--epochs", 1, "--grid-epochs", 1, "--batch-size", 8, "--repeats", 1]
    done = subprocess.run([sys.executable, str(RUN), *map(str, values)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (root / "out" / "table.md").read_text() in done.stdout
    return root / "out"


@pytest.mark.slow
def test_the_search_never_sees_the_images_it_trains_on_or_the_test(out: Path) -> None:
    searched = out / "first" / "train_only"
    names = {split: {p.resolve() for p in (searched / split).rglob("*.png")} for split in ("train", "val", "test")}
    trained = {p.resolve() for p in (out / "first" / "images" / "train").rglob("*.png")}
    assert len(names["train"]) == len(names["val"]) == 12
    assert names["train"] == trained
    assert not names["train"] & names["val"]
    assert not names["test"]
    assert not (out / "second" / "grid").exists()


@pytest.mark.slow
def test_the_result_and_its_table(out: Path) -> None:
    found = json.loads((out / "results.json").read_text())
    rates = {method: max(grid, key=grid.get) for method, grid in found["grids"].items()}
    head_lr = float(rates["linear"])
    assert [(r["data"], r["method"]) for r in found["results"]] == [
        (data, method) for data in ("first", "second") for method in ("lora", "linear")
    ]
    for result in found["results"]:
        assert result["lr"] == float(rates[result["method"]])
        assert result["head_lr"] == head_lr
        assert result["images"]["test"]["images"] == 9
    assert set(found["steps"]) == {"floor", "lora", "linear"}
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0].startswith("| method | adapter parameters | step time / frozen | learning rate | first, test")
    # r = 8 in 12 blocks: q, k, v and the output projection (192 to 192), both layers of the MLP (192 to 768 and back)
    assert lines[2].startswith(f"| lora | {12 * 8 * (4 * 384 + 2 * 960):,} | ")
    assert lines[3].startswith("| linear | 0 | ")
