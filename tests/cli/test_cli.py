"""The commands as a user types them; every wrong input is one line, exit status 2, and nothing is written."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from orthotune.cli import main
from orthotune.cli.fit import parse
from orthotune.cli.main import COMMANDS
from orthotune.fields import adapter_fields
from orthotune.methods import METHODS
from training.tiny import settings, write_digits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("cli"))


def flags(data: Path, out: Path, /, **changes: object) -> list[str]:
    """Command-line arguments of ``settings``."""
    result = ["--quiet"]
    for name, value in {**settings(data, out, epochs=1), **changes}.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            result += [option] if value else []
        elif isinstance(value, dict):
            result += [text for k, v in value.items() for text in (f"{option}.{k}", str(v))]
        else:
            result += [option, str(value)]
    return result


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of RLRR."""
    out = tmp_path_factory.mktemp("runs") / "rlrr"
    assert main(["fit", *flags(data, out, method="rlrr")]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line on stderr with which ``arguments`` are refused."""
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_fit_prints_the_accuracy_that_it_records(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *flags(data, tmp_path / "run", method="linear")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"test accuracy {metrics['test']['top1']:.2%} on 18 images" in capsys.readouterr().out


def test_evaluate_predict_and_merge(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", str(run), "--data", str(data), "--out", str(tmp_path / "e.json"), "--quiet"]) == 0
    scores = json.loads((tmp_path / "e.json").read_text())
    assert scores["top1"] == json.loads((run / "metrics.json").read_text())["test"]["top1"]
    capsys.readouterr()
    images = str(data / "test" / "digit0")
    assert main(["predict", "--run", str(run), images, "--quiet"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main(["predict", "--run", str(run), images, "--format", "json", "--quiet"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert [(r["path"], r["label"]) for r in rows] == [(s["path"], s["label"]) for s in same]
    assert len(rows) == 6
    assert main(["merge", "--run", str(run), "--out", str(tmp_path / "merged")]) == 0
    assert "differ by" in capsys.readouterr().out
    assert "already exists" in refused(capsys, ["merge", "--run", str(run), "--out", str(tmp_path / "merged")])


@pytest.mark.slow
def test_the_merged_model_loads_in_timm_alone_and_predicts_the_same(run: Path, data: Path, tmp_path: Path) -> None:
    assert main(["merge", "--run", str(run), "--out", str(tmp_path / "merged")]) == 0
    script = f"""
import json, sys, timm, torch
model = timm.create_model("local-dir:{tmp_path / "merged"}", pretrained=True).eval()
assert not any(name.startswith(("orthotune", "peft")) for name in sys.modules)
images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
print(json.dumps(model(images).tolist()))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    from orthotune.training.run import open_run

    model = open_run(run).model
    model.module.eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), model.logits(images), rtol=1e-4, atol=1e-5)


def test_yaml_says_the_same_as_flags_and_flags_override(data: Path, tmp_path: Path) -> None:
    arguments = flags(data, tmp_path / "run", method="rlrr", adapter={"r": 3, "target_modules": "qv"})
    from_flags, _ = parse(arguments)
    (tmp_path / "c.yaml").write_text(from_flags.to_yaml())
    from_file, _ = parse(["--config", str(tmp_path / "c.yaml")])
    assert from_file == from_flags
    changed, _ = parse(["--config", str(tmp_path / "c.yaml"), "--adapter.r", "2", "--no-random-weights", "--seed=5"])
    assert changed.adapter == {"r": 2, "target_modules": "qv"}
    assert (changed.random_weights, changed.seed) == (False, 5)
    assert set(changed.differing(from_flags)) == {
        "--adapter ({'r': 2, 'target_modules': 'qv'}, was {'r': 3, 'target_modules': 'qv'})",
        "--random-weights (False, was True)",
        "--seed (5, was 0)",
    }


def test_resume_needs_only_the_folder_and_names_other_settings(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "metrics.json").read_bytes()
    assert main(["fit", "--resume", "--out", str(run)]) == 0
    line = refused(capsys, ["fit", "--resume", "--out", str(run), "--lr", "0.5", "--adapter.r", "2"])
    assert f"--lr (0.5, was {METHODS['rlrr'].lr})" in line
    assert "--adapter ({'r': 2}, was {})" in line
    assert (run / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "rlr"}, "method 'rlr' is unknown; did you mean rlrr"),
        ({"method": "rlrr", "adapter": {"rank": 2}}, "adapter field 'rank' is unknown for method 'rlrr'"),
        ({"method": "rlrr", "adapter": {"r": 0}}, "r=0"),
        ({"method": "rlrr", "adapter": {"r": "x"}}, "--adapter.r is 'x', which is not an integer"),
        ({"method": "goft", "adapter": {"target_modules": "[fc11]"}}, "fc1"),
        ({"method": "linear", "adapter": {"r": 2}}, "field 'r' is unknown for method 'linear'; it has none"),
        ({"model": "vit_tiny_patch16_225"}, "did you mean vit_tiny_patch16_224"),
        ({"model_args": {"deepth": 3}}, "deepth"),
        ({"weights": "none.safetensors", "random_weights": False}, "'none.safetensors' does not exist"),
        ({"weights": "none.safetensors"}, "exclude each other"),
        ({"image_size": 18}, "not a multiple of the patch size 4"),
        ({"data": "nowhere"}, "data folder 'nowhere' does not exist"),
        ({"epochs": 0}, "--epochs is 0; it must be at least 1"),
        ({"lr": -1}, "--lr is -1.0; it must be above 0"),
        ({"lr": "fast"}, "--lr is 'fast', which is not a number"),
        ({"augment": "all"}, "--augment is 'all', which is not 'vtab', 'fgvc', 'flip', 'none'"),
        ({"epoch": 3}, "option --epoch is unknown; did you mean --epochs"),
        ({"device": "cuda:99"}, "--device cuda:99 is not available here"),
        ({"lr": 1e30, "method": "full", "epochs": 3}, "loss became"),
    ],
)
def test_bad_settings_are_one_line(
    changes: dict[str, object],
    message: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, ["fit", *flags(data, tmp_path / "run", **changes)])
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "run").exists() == ("loss" in message)


def test_a_missing_setting_and_an_unknown_one_in_yaml_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--model is missing" in refused(capsys, ["fit", "--method", "goft"])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"learning_rate": 1, "modle": "x"}))
    assert "'learning_rate' is unknown" in refused(capsys, ["fit", "--config", str(tmp_path / "c.yaml")])
    assert "cannot be read" in refused(capsys, ["fit", "--config", str(tmp_path / "none.yaml")])


def test_a_run_folder_in_use_is_left_alone(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    assert "--resume or --overwrite" in refused(capsys, ["fit", *flags(data, run)])
    assert "holds other files" in refused(capsys, ["fit", *flags(data, data)])
    bad = ["fit", *flags(data, run, lr=-1), "--overwrite"]
    assert "--lr" in refused(capsys, bad)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.parametrize("command", ["evaluate", "predict", "merge"])
def test_a_folder_without_a_finished_run_is_named(
    command: str, data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"evaluate": ["--data", str(data)], "predict": [str(data / "test")], "merge": ["--out", str(tmp_path / "m")]}
    arguments = [command, "--run", str(tmp_path / "run"), *more[command]]
    assert "holds no run" in refused(capsys, arguments)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "is not finished" in refused(capsys, arguments)


def test_nan_in_an_adapter_stops_the_merge(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    file = broken / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("rlrr_left"))
    save_file({**tensors, name: tensors[name] * float("nan")}, file)
    line = refused(capsys, ["merge", "--run", str(broken), "--out", str(tmp_path / "merged")])
    assert name in line
    assert "NaN" in line
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", 1, "has other weights than the run"),
        ("method", "goft", "holds a RLRR adapter, but the run says method 'goft'"),
    ],
)
def test_a_run_with_another_base_or_method_is_refused(
    field: str, value: object, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    changed = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**changed, field: value}))
    assert message in refused(capsys, ["merge", "--run", str(copy), "--out", str(tmp_path / "merged")])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"orthotune {command}" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_methods_and_help_list_the_adapter_fields(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", method]) == 0
    listed = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["fit", "--method", method, "--help"])
    shown = capsys.readouterr().out
    fields = adapter_fields(method)
    assert ("target_modules" in fields) == METHODS[method].is_adapter
    assert all(f" {name} " in listed and f"\n  {name} (" in shown for name in fields)
    assert (f"adapter fields of {method} (" in shown) == bool(fields)


def test_the_list_of_methods_has_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:] if not line.startswith("   ")]
    assert listed == list(METHODS)


def test_a_format_is_for_the_list_of_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave out 'goft'" in refused(capsys, ["methods", "goft", "--format", "csv"])


def test_unknown_command_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean fit" in refused(capsys, ["fits"])
    assert main([]) == 2
    assert main(["--version"]) == 0


def test_demo_compares_the_methods(tmp_path: Path) -> None:
    from orthotune.demo import Row, run_demo

    rows = list(run_demo(tmp_path, methods=["linear", "goft"], epochs=2, pretrain_epochs=1, shots=5))[1:]
    assert [row.method for row in rows if isinstance(row, Row)] == ["linear", "goft"]
    assert all(isinstance(row, Row) and row.merge_difference < 1e-4 for row in rows)
