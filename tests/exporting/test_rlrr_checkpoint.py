"""Checkpoints in the layout of the RLRR authors' code against their formulas, dense and in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor

from orthotune.cli import main
from orthotune.errors import InputError
from orthotune.exporting.rlrr_checkpoint import import_rlrr
from reference import relative_error

TINY = "vit_tiny_patch16_224"
ARGS: dict[str, Any] = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
WIDTH, HEADS, CLASSES = 32, 2, 5
LINEAR = {
    "attn.query": (32, 32),
    "attn.key": (32, 32),
    "attn.value": (32, 32),
    "attn.out": (32, 32),
    "ffn.fc1": (128, 32),
    "ffn.fc2": (32, 128),
}


def checkpoint() -> dict[str, Tensor]:
    """Random tensors with the names and shapes that the authors' ``save_model`` writes."""
    torch.manual_seed(1)
    state = {"head.weight": torch.randn(CLASSES, WIDTH), "head.bias": torch.randn(CLASSES)}
    scaled = ["embeddings.{}_patch", "encoder.{}_enc_norm"]
    for i in range(2):
        layer = f"transformer.encoder.layer.{i}."
        scaled += [f"encoder.layer.{i}.{{}}_{norm}" for norm in ("attn_norm", "ffn_norm")]
        for name, (n, d) in LINEAR.items():
            state[f"{layer}{name}.scale_col"] = torch.randn(1, d)
            state[f"{layer}{name}.scale_line"] = torch.randn(n, 1)
            state[f"{layer}{name}.shift_bias"] = torch.randn(1, n)
    for name in scaled:
        state[f"transformer.{name.format('ssf_scale')}"] = 1 + 0.5 * torch.randn(WIDTH)
        state[f"transformer.{name.format('ssf_shift')}"] = torch.randn(WIDTH)
    return state


def authors_logits(base: dict[str, Tensor], theirs: dict[str, Tensor], images: Tensor) -> Tensor:
    """The authors' forward pass, step by step, on timm's weights; all float64."""

    def scaled(x: Tensor, name: str) -> Tensor:
        return x * theirs[f"transformer.{name.format('ssf_scale')}"] + theirs[f"transformer.{name.format('ssf_shift')}"]

    def linear(x: Tensor, name: str, weight: Tensor, bias: Tensor) -> Tensor:
        col, line, shift = (theirs[f"transformer.{name}.{part}"] for part in ("scale_col", "scale_line", "shift_bias"))
        return x @ (weight * col * line + weight).T + bias + shift

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * base[f"{name}.weight"] + base[f"{name}.bias"]

    patches = images.unfold(2, 4, 4).unfold(3, 4, 4)  # (N, 3, rows, columns, 4, 4)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ base["patch_embed.proj.weight"].flatten(1).T + base["patch_embed.proj.bias"]
    x = scaled(x, "embeddings.{}_patch")
    x = torch.cat([base["cls_token"].expand(len(x), -1, -1), x], dim=1) + base["pos_embed"]
    for i in range(2):
        theirs_at, ours = f"encoder.layer.{i}", f"blocks.{i}"
        y = scaled(norm(x, f"{ours}.norm1"), f"{theirs_at}.{{}}_attn_norm")
        weights, biases = (base[f"{ours}.attn.qkv.{kind}"].chunk(3) for kind in ("weight", "bias"))
        names = ("query", "key", "value")
        parts = [linear(y, f"{theirs_at}.attn.{names[j]}", weights[j], biases[j]) for j in range(3)]
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        attention = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        y = (attention @ v).transpose(1, 2).flatten(2)
        proj = base[f"{ours}.attn.proj.weight"], base[f"{ours}.attn.proj.bias"]
        x = x + linear(y, f"{theirs_at}.attn.out", *proj)
        y = scaled(norm(x, f"{ours}.norm2"), f"{theirs_at}.{{}}_ffn_norm")
        y = linear(y, f"{theirs_at}.ffn.fc1", base[f"{ours}.mlp.fc1.weight"], base[f"{ours}.mlp.fc1.bias"])
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + linear(y, f"{theirs_at}.ffn.fc2", base[f"{ours}.mlp.fc2.weight"], base[f"{ours}.mlp.fc2.bias"])
    x = scaled(norm(x, "norm"), "encoder.{}_enc_norm")
    return x[:, 0] @ theirs["head.weight"].T + theirs["head.bias"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A file of random base weights, among them biases that are not zero."""
    torch.manual_seed(0)
    module = timm.create_model(TINY, img_size=16, num_classes=7, **ARGS)
    state = {k: v + 0.1 * torch.randn_like(v) for k, v in module.state_dict().items()}
    save_file(state, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def converted(base: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    torch.save(state, base.with_name("91.50.pth"))
    arguments = {"weights": str(base), "image_size": 16, "model_args": ARGS, **changes}
    import_rlrr(base.with_name("91.50.pth"), TINY, base.with_name("adapter"), **arguments)
    return base.with_name("adapter")


@pytest.mark.parametrize("merge", [False, True])
def test_logits_are_those_of_the_authors_formulas(merge: bool, base: Path) -> None:
    adapter = converted(base, checkpoint())
    model = timm.create_model(TINY, img_size=16, num_classes=CLASSES, **ARGS)
    from safetensors.torch import load_file

    weights = load_file(base)
    model.load_state_dict({k: v for k, v in weights.items() if "head" not in k}, strict=False)
    loaded = PeftModel.from_pretrained(model, str(adapter)).double().eval()
    images = torch.randn(2, 3, 16, 16).double()
    double = {key: tensor.double() for key, tensor in weights.items()}
    expected = authors_logits(double, {k: v.double() for k, v in checkpoint().items()}, images)
    got = (loaded.merge_and_unload() if merge else loaded)(images)
    assert relative_error(got, expected) < 1e-6  # the patch embedding's shift was rounded to float32


def test_the_command(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(checkpoint(), base.with_name("c.pth"))
    args = [part for key, value in ARGS.items() for part in (f"--model-args.{key}", str(value))]
    arguments = ["import", "--from", "rlrr", str(base.with_name("c.pth")), "--model", TINY, "--weights", str(base)]
    arguments += ["--image-size", "16", *args, "--out", str(base.with_name("out"))]
    assert main(arguments) == 0
    count = sum(tensor.numel() for tensor in checkpoint().values())
    extra = 3 * 4 + WIDTH * (4 - 1)  # the patch embedding: 3 * 4 ones of S_left, and S_right four times as long
    assert f"{count + extra:,} parameters" in capsys.readouterr().out
    assert (base.with_name("out") / "adapter_config.json").is_file()
    assert main(arguments) == 2
    assert "already exists" in capsys.readouterr().err


def without(*names: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in checkpoint().items() if not key.endswith(names)}


LAYER = "transformer.encoder.layer.1."


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({**checkpoint(), "layers.0.blocks.0.attn.qkv.scale_col": torch.ones(1, 32)}, "no tensor of the RLRR authors'"),
        (without("head.weight"), "holds no head"),
        (
            without("layer.1.ffn.fc2.scale_line"),
            r"layer 'blocks.1.mlp.fc2' .* takes a right of shape \(1, 32\).*missing",
        ),
        (without("ssf_shift_enc_norm"), "layer 'norm' .* missing"),
        ({k: v for k, v in checkpoint().items() if not k.startswith(LAYER)}, r"lacks \d+ tensors .*blocks\.1"),
        (
            {**checkpoint(), **{k.replace("layer.1", "layer.2"): v for k, v in checkpoint().items()}},
            r"layer 'blocks\.2\..*', which vit_tiny_patch16_224 has not",
        ),
        ({**checkpoint(), f"{LAYER}attn.out.scale_col": torch.ones(1, 48)}, r"of shape \(48, 1\)"),
        ({**checkpoint(), f"{LAYER}attn.out.scale_col": torch.full((1, 32), float("nan"))}, "contains NaN"),
        ({**checkpoint(), "transformer.embeddings.ssf_scale_patch": torch.ones(48)}, "layer 'patch_embed.proj'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(state: dict[str, Tensor], message: str, base: Path) -> None:
    with pytest.raises(InputError, match=message):
        converted(base, state)
    assert not base.with_name("adapter").exists()
