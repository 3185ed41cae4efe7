"""A fused projection adapted part by part is the same as separate layers."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import timm
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

import orthotune
from orthotune.tuners.fused import FusedProjection
from tuners.cases import LINEAR, config


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
    ).eval()


class SeparateAttention(nn.Module):
    """timm's attention written with three layers; the reference for the fused one."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.heads = fused.num_heads
        weights, biases = fused.qkv.weight.data.chunk(3), fused.qkv.bias.data.chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
            self.add_module(name, layer)
        self.proj = fused.proj

    def forward(self, x: torch.Tensor, **_) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = (layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


def separate_vit() -> nn.Module:
    model = tiny_vit()
    for block in model.blocks:
        block.attn = SeparateAttention(block.attn)
    return model


@pytest.mark.parametrize("name", LINEAR)
def test_parts_are_as_if_they_were_separate_layers(name: str) -> None:
    x = torch.randn(2, 3, 16, 16)
    models = []
    for build in (tiny_vit, separate_vit):
        model = build()
        torch.manual_seed(1)
        models.append(peft.get_peft_model(model, config(name, target_modules=["q", "v"], init_weights=False)).eval())
    fused, separate = models
    assert torch.allclose(fused(x), separate(x), atol=1e-5)
    names = [[n for n, p in m.named_parameters() if p.requires_grad] for m in models]
    assert [n.replace("attn.qkv.", "attn.") for n in names[0]] == names[1]
    fused(x).square().sum().backward()
    separate(x).square().sum().backward()
    for a, b in zip(fused.parameters(), separate.parameters(), strict=False):
        if a.requires_grad:
            assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["goft", "rlrr", "aoft", "lora"])
@pytest.mark.parametrize("merge", [True, False])
def test_unloading_puts_the_fused_layer_back(method: str, merge: bool) -> None:
    model = tiny_vit()
    original = {k: v.clone() for k, v in model.state_dict().items()}
    if method == "lora":
        options = peft.LoraConfig(target_modules=["q", "v"], init_lora_weights=False)
        assert orthotune.split_fused_projections(model, options) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    else:
        options = config(method, target_modules=["q", "v"], init_weights=False)
    x = torch.randn(2, 3, 16, 16)
    adapted = peft.get_peft_model(model, options).eval()
    want = adapted(x)
    plain = adapted.merge_and_unload(safe_merge=True) if merge else adapted.unload()
    assert isinstance(plain.blocks[0].attn.qkv, nn.Linear)
    state = plain.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in original.items()}
    if merge:
        assert torch.allclose(plain(x), want, atol=1e-5)
        keys = [24, 48]
        for block in range(2):
            weight = f"blocks.{block}.attn.qkv.weight"
            assert torch.equal(state[weight][keys[0] : keys[1]], original[weight][keys[0] : keys[1]])
        fresh = tiny_vit()
        fresh.load_state_dict(state, strict=True)
        assert torch.allclose(fresh(x), want, atol=1e-5)
    else:
        for key, value in original.items():
            assert torch.equal(state[key], value), key


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["q"], 2),
        (["qkv.v"], 2),
        (["blocks.1.attn.qkv.k"], 1),
        (r".*blocks\.0\.attn\.qkv\.[qv]", 2),
        (["q", "v", "proj"], 7),
        (["qkv"], 2),
    ],
)
def test_parts_are_matched_as_layers_are(targets: list[str] | str, count: int) -> None:
    model = peft.get_peft_model(tiny_vit(), orthotune.GOFTConfig(target_modules=targets))
    assert len(orthotune.orthogonality_defect(model)) == count


def test_layers_to_transform_counts_the_blocks_of_a_timm_model() -> None:
    options = orthotune.GOFTConfig(target_modules=["q", "fc1"], layers_to_transform=[1])
    model = peft.get_peft_model(tiny_vit(), options)
    names = set(orthotune.orthogonality_defect(model))
    assert names == {f"base_model.model.blocks.1.{n}" for n in ("attn.qkv.q", "mlp.fc1")}


def test_gpt2_fused_conv1d() -> None:
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=30, n_positions=16)).eval()
    keys = {k: v.shape for k, v in model.state_dict().items()}
    ids = torch.arange(8)[None]
    options = orthotune.RLRRConfig(target_modules=["c_attn.q", "c_attn.v"], init_weights=False)
    adapted = peft.get_peft_model(model, options).eval()
    want = adapted(ids).last_hidden_state
    merged = adapted.merge_and_unload()
    assert torch.allclose(merged(ids).last_hidden_state, want, atol=1e-5)
    assert {k: v.shape for k, v in merged.state_dict().items()} == keys


def test_saved_parts_come_back(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    options = orthotune.AOFTConfig(r=2, target_modules=["q", "v"], init_weights=False, modules_to_save=["head"])
    model = peft.get_peft_model(tiny_vit(), options).eval()
    model.save_pretrained(tmp_path)
    back = peft.PeftModel.from_pretrained(tiny_vit(), tmp_path).eval()
    assert torch.equal(back(x), model(x))


def test_second_adapter_on_other_parts() -> None:
    x = torch.randn(2, 3, 16, 16)
    model = peft.get_peft_model(tiny_vit(), config("goft", target_modules=["q"], init_weights=False)).eval()
    first = model(x)
    model.add_adapter("other", config("goft", target_modules=["k", "v"], init_weights=False))
    assert torch.equal(model(x), first)
    model.set_adapter("other")
    assert not torch.allclose(model(x), first, atol=1e-4)


def test_mixing_parts_and_whole_is_refused() -> None:
    model = peft.get_peft_model(tiny_vit(), config("goft", target_modules=["qkv"]))
    with pytest.raises(ValueError, match=r"a part \(q, k, v\) of 'blocks.0.attn.qkv', which another adapter"):
        model.add_adapter("parts", config("goft", target_modules=["q"]))
    model = peft.get_peft_model(tiny_vit(), config("goft", target_modules=["q"]))
    with pytest.raises(ValueError, match=r"'blocks.0.attn.qkv' is adapted in parts \(q, k, v\) by another adapter"):
        model.add_adapter("whole", config("goft", target_modules=["qkv"]))


def test_the_whole_is_left_alone_when_it_is_what_is_targeted() -> None:
    model = peft.get_peft_model(tiny_vit(), config("rlrr", target_modules="all-linear"))
    assert not any(isinstance(m, FusedProjection) for m in model.modules())
