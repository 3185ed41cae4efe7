"""Weight files in the layouts that the authors of pre-trained vision transformers publish, made small."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.models import build_classifier

ARGS: dict[str, Any] = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def encoder(seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.models.VisionTransformer(img_size=16, num_classes=0, **{**ARGS, **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def load(file: Path, name: str = "vit_tiny_patch16_224", **changes: Any) -> nn.Module:
    arguments = {**ARGS, **changes}
    return build_classifier(name, 3, weights=str(file), image_size=16, model_args=arguments).module


def assert_has(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert {n for n in own if not n.startswith("head")} == set(state)
    for name, tensor in state.items():
        assert torch.equal(own[name], tensor), name


def mae() -> dict[str, Any]:
    """models_mae.py's MaskedAutoencoderViT as main_pretrain.py saves it: encoder, mask_token, decoder_*, arguments."""
    decoder = encoder(1, embed_dim=16)
    state = {**encoder().state_dict(), "mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.ones(16, 32)}
    state |= {
        f"decoder_{n}": t for n, t in decoder.state_dict().items() if n.startswith(("blocks", "norm", "pos_embed"))
    }
    state |= {"decoder_pred.weight": torch.ones(48, 16), "decoder_pred.bias": torch.ones(48)}
    return {"model": state, "optimizer": {}, "epoch": 799, "scaler": {}, "args": argparse.Namespace(mask_ratio=0.75)}


def moco_v3() -> dict[str, Any]:
    """moco/builder.py's MoCo under DistributedDataParallel: two encoders with a projector as head, and a predictor."""
    state: dict[str, Tensor] = {}
    for seed, part in enumerate(("base_encoder", "momentum_encoder")):
        state |= {f"module.{part}.{n}": t for n, t in encoder(seed).state_dict().items()}
        state |= {f"module.{part}.head.0.weight": torch.ones(8, 32), f"module.{part}.head.1.weight": torch.ones(8)}
        state |= {f"module.{part}.head.7.running_mean": torch.ones(8)}
    state |= {"module.predictor.0.weight": torch.ones(8, 8), "module.predictor.1.bias": torch.ones(8)}
    return {"epoch": 300, "arch": "vit_base", "state_dict": state, "optimizer": {}, "scaler": {}}


def deit() -> dict[str, Any]:
    """DeiT's published files: the model alone, with the head of 1000 classes."""
    return {"model": {**encoder().state_dict(), "head.weight": torch.ones(1000, 32), "head.bias": torch.ones(1000)}}


@pytest.mark.parametrize(
    ("make", "left_out"),
    [
        (mae, "decoder_blocks, decoder_embed, decoder_norm, decoder_pos_embed, decoder_pred, mask_token"),
        (moco_v3, "momentum_encoder, predictor"),
        (deit, None),
    ],
    ids=["MAE", "MoCo v3", "DeiT"],
)
def test_the_encoder_is_loaded_and_what_is_left_out_is_said(
    make: Any, left_out: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(make(), tmp_path / "w.pth")
    assert_has(load(tmp_path / "w.pth"), dict(encoder().state_dict()))
    said = capsys.readouterr().err
    assert (f"left out: {left_out}" in said) if left_out else not said


def test_the_published_mae_encoder_has_no_decoder(tmp_path: Path) -> None:
    torch.save({"model": encoder().state_dict()}, tmp_path / "mae_pretrain_vit_base.pth")
    assert_has(load(tmp_path / "mae_pretrain_vit_base.pth"), dict(encoder().state_dict()))


def test_deit_distilled_has_two_tokens_and_two_heads(tmp_path: Path) -> None:
    source = timm.create_model("deit_tiny_distilled_patch16_224", img_size=16, num_classes=10, **ARGS)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    model = load(tmp_path / "w.pth", "deit_tiny_distilled_patch16_224")
    state = {n: t for n, t in source.state_dict().items() if not n.startswith("head")}
    assert "dist_token" in state
    assert_has(model, state)


@pytest.mark.parametrize(("in_file", "in_model"), [("avg", "token"), ("token", "avg")])
def test_a_file_with_the_other_pooling_names_the_setting(in_file: str, in_model: str, tmp_path: Path) -> None:
    """MAE's fine-tuned models pool the mean, with fc_norm in the place of norm."""
    source = encoder(global_pool=in_file)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=f"add --model-args.global_pool {in_file}"):
        load(tmp_path / "w.pth", global_pool=in_model)
    assert_has(load(tmp_path / "w.pth", global_pool=in_file), dict(source.state_dict()))


def jax(depth: int = 2, width: int = 32) -> dict[str, np.ndarray]:
    """The names and shapes of google-research/vision_transformer's files."""
    random = np.random.default_rng(0)

    def tensor(*shape: int) -> np.ndarray:
        return random.normal(size=shape, scale=0.1).astype(np.float32)

    state = {
        "cls": tensor(1, 1, width),
        "embedding/kernel": tensor(4, 4, 3, width),
        "embedding/bias": tensor(width),
        "Transformer/posembed_input/pos_embedding": tensor(1, 17, width),
        "Transformer/encoder_norm/scale": tensor(width),
        "Transformer/encoder_norm/bias": tensor(width),
        "head/kernel": tensor(width, 1000),
        "head/bias": tensor(1000),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        for name in ("query", "key", "value"):
            state[f"{block}/MultiHeadDotProductAttention_1/{name}/kernel"] = tensor(width, 2, width // 2)
            state[f"{block}/MultiHeadDotProductAttention_1/{name}/bias"] = tensor(2, width // 2)
        state[f"{block}/MultiHeadDotProductAttention_1/out/kernel"] = tensor(2, width // 2, width)
        state[f"{block}/MultiHeadDotProductAttention_1/out/bias"] = tensor(width)
        for dense, (fan_in, fan_out) in enumerate([(width, 4 * width), (4 * width, width)]):
            state[f"{block}/MlpBlock_3/Dense_{dense}/kernel"] = tensor(fan_in, fan_out)
            state[f"{block}/MlpBlock_3/Dense_{dense}/bias"] = tensor(fan_out)
        for norm in (0, 2):
            state[f"{block}/LayerNorm_{norm}/scale"] = tensor(width)
            state[f"{block}/LayerNorm_{norm}/bias"] = tensor(width)
    return state


def test_the_original_npz_files_are_loaded(tmp_path: Path) -> None:
    state = jax()
    np.savez(tmp_path / "ViT-Ti_16.npz", **state)
    model = load(tmp_path / "ViT-Ti_16.npz")
    own = model.state_dict()
    block = "Transformer/encoderblock_1"
    wanted = {
        "patch_embed.proj.weight": state["embedding/kernel"].transpose(3, 2, 0, 1),
        "pos_embed": state["Transformer/posembed_input/pos_embedding"],
        "blocks.1.mlp.fc2.weight": state[f"{block}/MlpBlock_3/Dense_1/kernel"].T,
        "norm.bias": state["Transformer/encoder_norm/bias"],
    }
    for name, array in wanted.items():
        np.testing.assert_array_equal(own[name].numpy(), array)
    key = state[f"{block}/MultiHeadDotProductAttention_1/key/kernel"].reshape(32, 32).T
    np.testing.assert_array_equal(own["blocks.1.attn.qkv.weight"][32:64].numpy(), key)
    assert own["head.weight"].shape == (3, 32)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (jax(depth=3), "has 3 blocks, vit_tiny_patch16_224 has 2"),
        (jax(depth=1), "encoderblock_1"),
        (jax(width=16), "does not fit"),
        ({"a": np.zeros(1)}, "does not fit"),
    ],
)
def test_an_npz_file_of_another_architecture_is_refused(state: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **state)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "w.npz")


def test_npz_files_are_for_models_that_have_a_reader(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.zeros(1))
    with pytest.raises(InputError, match=r"resnet10t takes no \.npz file"):
        build_classifier("resnet10t", 3, weights=str(tmp_path / "w.npz"), image_size=32)
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "none.npz")
