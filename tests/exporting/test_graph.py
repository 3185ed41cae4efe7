"""ONNX files and torch.export programs give the model's logits for any number of images, without its code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.cli import main
from orthotune.errors import InputError
from orthotune.exporting import graph
from orthotune.models import AdaptedModel, adapt, build_classifier
from reference import relative_error
from training.tiny import MODEL_ARGS

TOLERANCE = 1e-5


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))


def logits(run: Path, x: torch.Tensor) -> torch.Tensor:
    from orthotune.training.run import open_run

    model = open_run(run).model
    model.module.eval()
    return model.logits(x).detach()


def check_description(text: str, run: Path) -> None:
    found = json.loads(text)
    assert found["classes"] == json.loads((run / "classes.json").read_text())
    assert found["preprocessing"]["size"] == 16
    assert (found["method"], found["model"]) == ("rlrr", "vit_tiny_patch16_224")


@pytest.mark.slow
def test_onnx(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "model.onnx"
    assert main(["export", "--to", "onnx", "--run", str(run), "--out", str(file)]) == 0
    assert "logits differ by" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    check_description(session.get_modelmeta().custom_metadata_map["orthotune"], run)
    for count in (1, 2, 5):
        got = session.run(["logits"], {"pixel_values": images(count).numpy()})[0]
        assert relative_error(torch.from_numpy(got), logits(run, images(count))) < TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert main(["export", "--to", "onnx", "--run", str(run), "--out", str(file)]) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.slow
def test_torch_export(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    assert main(["export", "--to", "torch-export", "--run", str(run), "--out", str(file)]) == 0
    extra = {"orthotune": ""}
    program = torch.export.load(file, extra_files=extra).module()
    check_description(extra["orthotune"], run)
    for count in (1, 2, 5):
        assert relative_error(program(images(count)), logits(run, images(count))) < TOLERANCE
    script = (
        f"import sys, torch; torch.export.load(r'{file}'); print('orthotune' in sys.modules or 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("to", "size"), [("onnx", 24), ("torch-export", None), ("torch-export", 24)])
def test_transformers_models(to: str, size: int | None, tmp_path: Path) -> None:
    """Also at another image size, where the position embeddings are interpolated."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    folder = tmp_path / "vit"
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    model = adapt(build_classifier(str(folder), 3, image_size=size), "goft", {"init_weights": False})
    model.module.eval()
    file, x = tmp_path / "model", torch.randn(2, 3, size or 16, size or 16)
    if to == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        graph.export_onnx(model, file)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        got = torch.from_numpy(session.run(["logits"], {"pixel_values": x.numpy()})[0])
    else:
        graph.export_program(model, file)
        got = torch.export.load(file).module()(x)
    assert relative_error(got, model.logits(x)) < TOLERANCE


def tiny(method: str, **values: Any) -> AdaptedModel:
    classifier = build_classifier(
        "vit_tiny_patch16_224", 3, image_size=16, model_args={**MODEL_ARGS, "depth": 1}, random_weights=True
    )
    return adapt(classifier, method, {"init_weights": False, **values})


def test_a_file_with_other_logits_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("goft")
    monkeypatch.setattr(torch.export, "save", lambda program, file, **_: Path(file).write_bytes(b""))
    wrong = torch.nn.Linear(3 * 16 * 16, 3)
    monkeypatch.setattr(torch.export, "load", lambda _: _Loaded(lambda x: wrong(x.flatten(1))))
    with pytest.raises(InputError, match=r"differs from the adapted one by .* nothing was written"):
        graph.export_program(model, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


class _Loaded:
    def __init__(self, run: Any) -> None:
        self.module = lambda: run


def test_a_model_that_cannot_be_traced_is_an_error(tmp_path: Path) -> None:
    model = tiny("aoft")

    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 1e9 else x + 0

    model.classifier.module.norm = Branches()
    with pytest.raises(InputError, match=r"cannot be exported to torch\.export: "):
        graph.export_program(model, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("goft", {}),
        ("goft", {"scale": "output"}),
        ("qgoft", {}),
        ("rlrr", {}),
        ("aoft", {}),
        ("aoft", {"learn_scale": False}),
    ],
)
def test_an_unmerged_model_goes_through_torch_export(method: str, values: dict[str, Any], tmp_path: Path) -> None:
    """With this package's operators in the program, which loads where the package is imported."""
    module: Any = tiny(method, **values).module.eval()
    program = torch.export.export(
        module.get_base_model(), (images(3),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert any("orthotune" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, tmp_path / "unmerged.pt2")
    loaded = torch.export.load(tmp_path / "unmerged.pt2").module()
    assert relative_error(loaded(images(5)), module(images(5))) < TOLERANCE
