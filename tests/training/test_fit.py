"""Whole runs of every method: what is written, what is trained, and that it can be used again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from orthotune.errors import InputError
from orthotune.methods import METHODS
from orthotune.training import evaluate, fit, merge, predict
from orthotune.training.run import open_run
from training.tiny import MODEL_ARGS, config, write_digits

ADAPTERS = [name for name, method in METHODS.items() if method.is_adapter]


@pytest.mark.parametrize("method", METHODS)
def test_run_evaluates_and_merges_to_the_model_that_was_trained(method: str, digits: Path, tmp_path: Path) -> None:
    settings = config(digits, tmp_path / "run", method)
    metrics = fit(settings, quiet=True)
    run = tmp_path / "run"
    files = {p.name for p in run.iterdir()}
    assert files == {"config.yaml", "metrics.json", "curve.png", "adapter", "classes.json"}
    assert yaml.safe_load((run / "config.yaml").read_text())["method"] == method
    assert json.loads((run / "metrics.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(metrics)))

    scores = evaluate(run, digits, device="cpu", quiet=True)
    assert metrics.test is not None
    assert scores.top1 == metrics.test["top1"]
    assert scores.loss == pytest.approx(metrics.test["loss"], rel=1e-6)

    if open_run(run).model.merge_obstacle():
        with pytest.raises(InputError, match=f"what method '{method}' trained cannot be merged: "):
            merge(run, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        return
    report = merge(run, tmp_path / "merged")
    assert report.max_difference <= report.tolerance
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    plain = open_run(run).model.classifier.module
    original = {name.replace(".base_layer", "") for name in plain.state_dict()}
    assert len(merged) <= len(original)
    assert all("lora" not in name and "goft" not in name for name in merged)


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_those_of_the_saved_tensors(method: str, digits: Path, tmp_path: Path) -> None:
    metrics = fit(config(digits, tmp_path / "run", method, epochs=1), quiet=True)
    (file,) = (tmp_path / "run" / "adapter").glob("*.safetensors")
    counts = metrics.parameters
    assert counts["adapter"] + counts["head"] == counts["trainable"]
    saved = sum(t.numel() for t in load_file(file).values())
    # some of PEFT's also save what they do not train
    assert counts["trainable"] == saved if METHODS[method].is_own else counts["trainable"] <= saved
    assert counts["head"] >= MODEL_ARGS["embed_dim"] * 3 + 3
    assert counts["adapter"] > 0 or not METHODS[method].is_adapter


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_trains_changes(method: str, digits: Path, tmp_path: Path) -> None:
    from orthotune.training.fitting import FitRun
    from orthotune.training.run import RunFolder

    run = FitRun(config(digits, tmp_path / "run", method), RunFolder(tmp_path / "run"), continues=False)
    before = {n: p.detach().clone() for n, p in run.model.module.named_parameters()}
    run.trainer.train_epoch(0)
    changed = {n for n, p in run.model.module.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= set(run.model.trained_tensors())
    assert any("head" in n for n in changed)


def test_same_seed_same_result_and_another_seed_another(digits: Path, tmp_path: Path) -> None:
    curves = []
    for i, seed in enumerate((0, 0, 1)):
        metrics = fit(config(digits, tmp_path / str(i), "aoft", augment="fgvc", seed=seed), quiet=True)
        curves.append([{k: v for k, v in entry.items() if k != "seconds"} for entry in metrics.curve])
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_workers_and_an_empty_cache_change_nothing(digits: Path, tmp_path: Path) -> None:
    weights = []
    for i, changes in enumerate(({}, {"cache_mb": 0}, {"num_workers": 1})):
        fit(config(digits, tmp_path / str(i), "lora", augment="fgvc", epochs=1, **changes), quiet=True)
        weights.append(load_file(tmp_path / str(i) / "adapter" / "adapter_model.safetensors"))
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])


@pytest.mark.parametrize("method", ["qgoft", "full"])
def test_accumulation_gives_the_update_of_the_larger_batch(method: str, digits: Path, tmp_path: Path) -> None:
    results = []
    for i, (size, accumulate) in enumerate(((8, 1), (4, 2))):
        changes = {"batch_size": size, "accumulate": accumulate, "epochs": 1, "lr": 1e-2}
        fit(config(digits, tmp_path / str(i), method, **changes), quiet=True)
        (file,) = (tmp_path / str(i) / "adapter").glob("*.safetensors")
        results.append(load_file(file))
    for name, value in results[0].items():
        # Adam divides by the root of a squared gradient, which enlarges rounding where gradients are tiny
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ADAPTERS)
def test_checkpointing_gives_the_same_loss(method: str, digits: Path, tmp_path: Path) -> None:
    losses = []
    for i, on in enumerate((False, True)):
        metrics = fit(config(digits, tmp_path / str(i), method, epochs=1, grad_checkpointing=on), quiet=True)
        losses.append(metrics.curve[0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bf16_trains(digits: Path, tmp_path: Path) -> None:
    metrics = fit(config(digits, tmp_path / "run", "rlrr", precision="bf16", epochs=3), quiet=True)
    assert metrics.curve[-1]["train_loss"] < metrics.curve[0]["train_loss"]
    merge(tmp_path / "run", tmp_path / "merged")


def test_training_learns_the_digits(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data", train=30, test=20)
    metrics = fit(config(data, tmp_path / "run", "full", epochs=15, lr=3e-3, validation="none"), quiet=True)
    assert metrics.test is not None
    assert metrics.test["top1"] > 0.75  # chance is 1/3; measured 0.92


def test_best_epoch_is_the_one_of_highest_validation_accuracy(digits: Path, tmp_path: Path) -> None:
    metrics = fit(config(digits, tmp_path / "run", "full", epochs=6, lr=1e-2), quiet=True)
    best = max(metrics.curve, key=lambda e: (e["val_accuracy"], -e["val_loss"], e["epoch"]))
    assert metrics.best["epoch"] == best["epoch"]


def test_without_validation_all_of_train_is_used_and_the_last_epoch_kept(digits: Path, tmp_path: Path) -> None:
    metrics = fit(config(digits, tmp_path / "run", "linear", validation="none"), quiet=True)
    assert metrics.data["train"]["images"] == 30
    assert metrics.data["val"] is None
    assert metrics.best["epoch"] == 2
    assert "val_loss" not in metrics.curve[0]


@pytest.mark.parametrize(("method", "finite"), [("goft", True), ("qgoft", True), ("aoft", True), ("lora", False)])
def test_orthogonality_defect_is_reported_for_orthogonal_methods(
    method: str, finite: bool, digits: Path, tmp_path: Path
) -> None:
    metrics = fit(config(digits, tmp_path / "run", method, epochs=1), quiet=True)
    defect = metrics.orthogonality_defect
    assert (defect is not None) == finite
    assert metrics.curve[0].get("defect") == defect
    assert not finite or 0 < metrics.curve[0]["defect_mean"] <= metrics.curve[0]["defect"]
    if method == "goft":
        assert defect is not None
        assert defect < 1e-5


def test_predict_takes_files_and_folders(digits: Path, tmp_path: Path) -> None:
    fit(config(digits, tmp_path / "run", "linear", epochs=1), quiet=True)
    file = next((digits / "test" / "digit0").iterdir())
    found = predict(tmp_path / "run", [file, digits / "test" / "digit1"], device="cpu", quiet=True)
    assert len(found) == 7
    assert found[0].path == str(file)
    assert all(p.label in {"digit0", "digit1", "digit2"} and 1 / 3 <= p.probability <= 1 for p in found)
