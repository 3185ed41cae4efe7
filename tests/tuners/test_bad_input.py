"""Bad input gets one clear error that names the thing, the value and the rule, and leaves the model as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from orthotune import AOFTConfig, GOFTConfig, InputError, RLRRConfig
from tuners.cases import Convs, Linears


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RLRRConfig(r=0), "r=0 is out of range: it is a whole number of at least 1"),
        (lambda: AOFTConfig(r=-3), "r=-3 is out of range"),
        (lambda: AOFTConfig(r=2.5), "r=2.5 is out of range"),
        (lambda: AOFTConfig(r=True), "r=True is out of range"),
        (lambda: GOFTConfig(num_trees=0), "num_trees=0 is out of range"),
        (lambda: GOFTConfig(scale="outputs"), "scale='outputs' is not one of .* did you mean 'output'?"),
        (lambda: GOFTConfig(reg_lambda=-1.0), "reg_lambda=-1.0 is out of range"),
        (lambda: GOFTConfig(reg_lambda=float("nan")), "reg_lambda=nan is out of range"),
        (
            lambda: RLRRConfig(init_weights="normale"),
            "init_weights='normale' is not one of .*did you mean 'normal'?",
        ),
        (lambda: RLRRConfig(init_weights=1), "init_weights=1 is not one of"),
        (lambda: RLRRConfig(left=False, right=False), "leave nothing to rescale"),
        (lambda: RLRRConfig(left=False, r=2), "a one-sided rescaling has r=1"),
        (lambda: RLRRConfig(residual=False, multiply_base=False), "throw the pre-trained weight away"),
        (lambda: GOFTConfig(bias="lora_only"), "bias='lora_only' is not one of"),
        (
            lambda: GOFTConfig(target_modules="x", layers_to_transform=[1]),
            "cannot be used when `target_modules`",
        ),
        (lambda: GOFTConfig(target_modules=["x"], layers_pattern="h"), "`layers_to_transform` must also be"),
        (lambda: GOFTConfig(format_version=99), "format_version=99.*upgrade"),
    ],
)
def test_a_config_value_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(4, 4)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.sequence = nn.Conv1d(4, 4, 3)
        self.embedding = nn.Embedding(4, 4)
        self.narrow = nn.Linear(1, 4)
        self.plain_norm = nn.LayerNorm(4, elementwise_affine=False)
        self.norm = nn.LayerNorm(4)
        self.empty = nn.Identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            GOFTConfig(target_modules=["fine", "grouped"]),
            "layer 'grouped' is a Conv2d with groups=2; only groups=1",
        ),
        (
            GOFTConfig(target_modules=["fine", "sequence"]),
            "layer 'sequence' is a Conv1d, which is not supported",
        ),
        (
            AOFTConfig(target_modules=["fine", "embedding"], r=2),
            "layer 'embedding' is a Embedding, which is not",
        ),
        (
            GOFTConfig(target_modules=["fine", "narrow"]),
            "layer 'narrow' has width in_features=1: a rotation needs",
        ),
        (
            AOFTConfig(target_modules=["fine", "narrow"], r=2),
            r"r=2 is out of range for layer 'narrow': .*min\(1, 4\) = 1",
        ),
        (
            AOFTConfig(target_modules=["fine"], r=5),
            r"r=5 is out of range for layer 'fine': .*min\(4, 4\) = 4",
        ),
        (RLRRConfig(target_modules=["fine"], r=5), "r=5 is out of range for layer 'fine'"),
        (
            RLRRConfig(target_modules=["fine", "plain_norm"]),
            "layer 'plain_norm' is a LayerNorm, which is not",
        ),
        (
            GOFTConfig(target_modules=["fine", "norm"]),
            "layer 'norm' is a LayerNorm, which GOFT does not adapt",
        ),
        (GOFTConfig(target_modules=["empty"]), r"matches only placeholders \(nn.Identity\)"),
    ],
)
def test_a_layer_that_cannot_be_adapted_is_named_and_the_model_stays_as_it_was(options: Any, message: str) -> None:
    model = Unsupported()
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(model, options)
    assert [type(m) for m in model.modules()] == before


@pytest.mark.parametrize(
    ("make", "target"),
    [
        (lambda: nn.TransformerEncoderLayer(8, 2), "out_proj"),
        (lambda: timm.create_model("beit_base_patch16_224", num_classes=0), "qkv"),
        (lambda: timm.create_model("beit_base_patch16_224", num_classes=0), "q"),
        (lambda: timm.create_model("swinv2_tiny_window8_256", num_classes=0), "v"),
    ],
)
def test_a_layer_whose_weight_is_used_without_calling_it(make: Any, target: str) -> None:
    with torch.device("meta"):
        model = make()
    with pytest.raises(ValueError, match="uses its weight without calling it"):
        peft.get_peft_model(model, GOFTConfig(target_modules=[target]), low_cpu_mem_usage=True)


@pytest.mark.parametrize(
    ("targets", "near"),
    [
        (["frist"], "Near names in this model: first."),
        (["zzz"], "can be adapted end in: first, head, norm, second"),
    ],
)
def test_no_module_matches(targets: list[str], near: str) -> None:
    with pytest.raises(ValueError, match=f"not found in the base model.*{near}"):
        peft.get_peft_model(Linears(), GOFTConfig(target_modules=targets))


def test_no_module_matches_beside_one_that_is_trained_whole() -> None:
    with pytest.raises(ValueError, match=r"No modules were targeted.*Near names in this model: first\."):
        peft.get_peft_model(Linears(), GOFTConfig(target_modules=["frist"], modules_to_save=["head"]))


def test_a_layer_that_is_not_split_has_no_parts_to_name() -> None:
    model = torch.nn.ModuleDict({"c_attn": Conv1D(14, 7)})  # GPT-2's cross attention: keys and values
    with pytest.raises(ValueError, match=r"can be adapted end in: c_attn\."):
        peft.get_peft_model(model, GOFTConfig(target_modules=["q"]))


def test_no_targets_at_all() -> None:
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        peft.get_peft_model(Linears(), GOFTConfig())


@pytest.mark.parametrize("method", [GOFTConfig, RLRRConfig, lambda **k: AOFTConfig(r=2, **k)])
@pytest.mark.parametrize("model_cls", [Linears, Convs])
def test_a_merge_that_is_not_finite_is_refused_and_changes_nothing(method: Any, model_cls: type[nn.Module]) -> None:
    model = peft.get_peft_model(model_cls(), method(target_modules=["first"], init_weights=False))
    layer = model.base_model.model.first
    before = layer.weight.clone()
    next(p for p in layer.parameters() if p.requires_grad).data[0] = float("nan")
    message = "NaNs detected in the merged weights. The adapter default seems to be broken in layer 'first'"
    with pytest.raises(ValueError, match=message):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.weight, before)
    assert not layer.merged


def test_an_adapter_of_a_newer_format(tmp_path: Path) -> None:
    model = peft.get_peft_model(Linears(), GOFTConfig(target_modules=["first"]))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    assert saved["format_version"] == 1
    path.write_text(json.dumps({**saved, "format_version": 2}))
    with pytest.raises(InputError, match="format_version=2, and this orthotune knows up to 1"):
        peft.PeftModel.from_pretrained(Linears(), tmp_path)


def test_layers_without_a_bias_get_no_shift_and_are_named() -> None:
    model = Linears(bias=False)
    with pytest.warns(UserWarning, match="2 of 3 layers have no bias.*first, second"):
        adapted = peft.get_peft_model(model, RLRRConfig(target_modules=["first", "second", "head"]))
    merged = adapted.merge_and_unload()
    assert merged.first.bias is None


def test_fan_in_fan_out_on_a_linear_layer_is_corrected() -> None:
    options = GOFTConfig(target_modules=["first"], fan_in_fan_out=True)
    with pytest.warns(UserWarning, match="Setting fan_in_fan_out to False"):
        peft.get_peft_model(Linears(), options)
    assert options.fan_in_fan_out is False
