"""The command and its folder: readable files, pictures with something on them, one line for wrong input."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from orthotune.analysis import Analysis, inspect
from orthotune.analysis.output import to_csv, to_json, write_analysis
from orthotune.analysis.plots import draw, pooled
from orthotune.cli import main
from orthotune.models import AdaptedModel
from orthotune.training import fit
from training.tiny import MODEL_ARGS, config, write_digits


@pytest.fixture
def analysis(adapted: Callable[..., AdaptedModel]) -> Analysis:
    return inspect(adapted("aoft").module, batches=[torch.randn(4, 3, 16, 16)])


def test_json_and_csv_hold_what_was_found(analysis: Analysis) -> None:
    text = to_json(analysis, {"model": "tiny"})
    values = json.loads(text)
    assert values.pop("model") == "tiny"
    assert values.pop("format_version") == 1
    assert values == json.loads(json.dumps(dataclasses.asdict(analysis)))
    assert max(map(len, text.splitlines())) > 300  # a list of numbers stays on its line
    rows = list(csv.DictReader(io.StringIO(to_csv(analysis))))
    assert [row["name"] for row in rows] == [layer.name for layer in analysis.layers]
    last = analysis.layers[-1]
    assert float(rows[-1]["moved_relative"]) == last.movement.relative
    assert float(rows[-1]["down_rows_deviation"]) == last.projections["down"].rows.deviation
    assert float(rows[-1]["adapted_energy"]) == last.adapted.rows.energy
    assert rows[0]["moved_relative"] == "" == rows[0]["down_rows_deviation"]


def test_pictures(analysis: Analysis, tmp_path: Path) -> None:
    write_analysis(analysis, tmp_path / "png")
    assert {p.name for p in (tmp_path / "png").iterdir()} == {
        "analysis.json",
        "layers.csv",
        *(f"{name}.png" for name in ("angles", "spectra", "movement", "cka")),
    }
    for name in ("angles", "spectra", "movement", "cka"):
        pixels = np.asarray(Image.open(tmp_path / "png" / f"{name}.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, name
    vectors = draw(dataclasses.replace(analysis, layers=analysis.layers[:1], cka=None), "svg")
    assert set(vectors) == {"angles", "spectra"}
    assert all(ElementTree.fromstring(picture).tag.endswith("svg") for picture in vectors.values())


def test_a_model_without_adapter_has_only_the_pictures_there_is_something_for(
    adapted: Callable[..., AdaptedModel],
) -> None:
    assert set(draw(inspect(adapted("linear").module))) == {"angles", "spectra"}


def test_pooled_angles_weight_matrices_alike(analysis: Analysis) -> None:
    parts = [layer.weight.rows for layer in analysis.layers]
    density, mean, _ = pooled(parts)
    assert density.sum() == pytest.approx(1)
    assert mean == pytest.approx(sum(part.mean for part in parts) / len(parts))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits, the file of a model's weights, and runs of LoRA and full fine-tuning."""
    root = tmp_path_factory.mktemp("place")
    data = write_digits(root / "digits")
    fit(config(data, root / "lora", "lora", epochs=1), quiet=True)
    fit(config(data, root / "full", "full", epochs=1, lr=1e-2), quiet=True)
    from orthotune.training.run import open_run

    base = open_run(root / "lora").model.module.unload()
    save_file(base.state_dict(), root / "base.safetensors")
    return root


def base_flags(place: Path) -> list[str]:
    sizes = [part for key, value in MODEL_ARGS.items() for part in (f"--model-args.{key}", str(value))]
    return ["--weights", str(place / "base.safetensors"), "--image-size", "16", *sizes]


@pytest.mark.parametrize("source", ["run", "adapter", "run as adapter"])
def test_a_run_and_its_adapter_give_the_same(
    source: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(place / "lora")
    given = {
        "run": [run],
        "adapter": ["vit_tiny_patch16_224", f"{run}/adapter", *base_flags(place)],
        "run as adapter": ["vit_tiny_patch16_224", run, *base_flags(place)],
    }[source]
    data = ["--data", str(place / "digits" / "test"), "--examples", "8"]
    out = tmp_path / "out"
    assert main(["inspect", *given, *data, "--layers", "mlp", "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "blocks.1.mlp.fc2" in printed
    assert "CKA of features on 8 examples" in printed
    values = json.loads((out / "analysis.json").read_text())
    assert values["method"] == "lora"
    assert [layer["name"] for layer in values["layers"]] == [f"blocks.{i}.mlp.fc{j}" for i in (0, 1) for j in (1, 2)]
    assert all(layer["movement"]["relative"] > 0 for layer in values["layers"])
    assert values["cka"]["samples"] == 8


def test_a_model_by_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "vit_tiny_patch16_224", *base_flags(place), "--format", "csv", "--limit", "20"]
    assert main([*arguments, "--device", "cpu"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 13
    assert "moved, %" not in rows[0]


def test_a_run_without_an_adapter(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(place / "full"), "--format", "csv", "--device", "cpu"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert all(float(row["moved, %"]) > 0.1 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "x"], "is a run, which has its own adapter"),
        (["RUN", "--image-size", "16"], "is a run, which has its own adapter"),
        (["no_such_model"], "model 'no_such_model' is neither a timm model"),
        (["vit_tiny_patch16_224", "nowhere", "BASE"], "'nowhere' holds no adapter"),
        (["RUN", "--layers", "nothing"], "no layers that match layers='nothing'"),
        (["RUN", "--data", "nowhere"], "data folder 'nowhere' does not exist"),
        (["RUN", "--data", "DIGITS", "--examples", "1"], "at least two examples"),
        (["RUN", "--data", "glue:cola"], "but vit_tiny_patch16_224 takes images"),
        (["RUN", "--out", "DIGITS"], "already exists: give a new folder"),
        (["RUN", "--device", "quantum"], "--device quantum is not available here"),
        (["RUN", "--plots", "gif"], "--plots is 'gif', which is not 'png', 'svg'"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"RUN": [str(place / "lora")], "DIGITS": [str(place / "digits")], "BASE": base_flags(place)}
    given = [part for word in arguments for part in words.get(word, [word])]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    assert main(["inspect", *given, *out]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert message in printed
    assert not list(tmp_path.iterdir())
