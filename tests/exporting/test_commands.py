"""``orthotune export`` as a user types it: from a run and from an adapter folder; wrong input is one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import load_file

from orthotune.cli import main
from orthotune.training.run import open_run
from reference import relative_error
from training.tiny import MODEL_ARGS


def model_flags(weights: Path) -> list[str]:
    """The flags that say which model the weights are of."""
    args = [part for key, value in MODEL_ARGS.items() for part in (f"--model-args.{key}", str(value))]
    return ["--model", "vit_tiny_patch16_224", "--weights", str(weights), "--image-size", "16", *args]


def with_lora(weights: Path, folder: Path) -> PeftModel:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=16, **MODEL_ARGS)
    model.load_state_dict({k: v for k, v in load_file(weights).items() if "head" not in k}, strict=False)
    return PeftModel.from_pretrained(model, str(folder)).eval()


@pytest.mark.parametrize("source", ["run", "adapter"])
def test_lora(source: str, run: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--run", str(run)] if source == "run" else ["--adapter", str(run / "adapter"), *model_flags(weights)]
    out = tmp_path / "lora"
    assert main(["export", "--to", "lora", *given, "--tolerance", "1e-6", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"blocks\.1\.attn\.qkv +{MODEL_ARGS['embed_dim']} +\d\.\de-0[67] *\n", printed)
    assert float(re.search(r"logits differ by (\S+) of", printed)[1]) < 1e-5
    model = open_run(run).model
    model.module.eval()
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(with_lora(weights, out)(x), model.logits(x)) < 1e-5


def test_the_printed_difference_of_logits_is_that_of_the_lora(
    run: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lora"
    assert main(["export", "--to", "lora", "--run", str(run), "--rank", "1", "--out", str(out)]) == 0
    printed = float(re.search(r"logits differ by (\S+) of", capsys.readouterr().out)[1])
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = open_run(run).model
    model.module.eval()
    assert printed == pytest.approx(relative_error(with_lora(weights, out)(images), model.logits(images)), rel=0.1)
    assert printed > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "lora"], "give one of --run and --adapter"),
        (["--to", "lora", "--run", "RUN", "--adapter", "x"], "give one of --run and --adapter"),
        (["--to", "lora", "--adapter", "x"], "--adapter needs --model"),
        (["--to", "lora", "--adapter", "x", "--model", "vit_tiny_patch16_224"], "'x' holds no adapter"),
        (["--to", "hub", "--adapter", "x", "--model", "y"], "--to hub needs --run"),
        (["--to", "lora", "--run", "RUN", "--model", "y"], "go with --adapter"),
        (["--to", "lora", "--run", "RUN"], "has no exact low-rank factors: give a rank"),
        (["--to", "lora", "--run", "RUN", "--rank", "1", "--tolerance", "0.1"], "exclude each other"),
        (["--to", "lora", "--run", "RUN", "--rank", "1", "--extras", "refuse"], "norms (blocks.0.norm1"),
        (["--to", "tflite", "--run", "RUN"], "--to is 'tflite', which is not 'lora', 'onnx', 'torch-export', 'hub'"),
        (["--to", "onnx", "--run", "nowhere"], "'nowhere' holds no run"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run) if part == "RUN" else part for part in arguments]
    assert main(["export", *given, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())
