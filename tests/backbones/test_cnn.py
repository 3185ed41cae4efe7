"""Convolutional networks: the published parameter counts, batch norms, and training without naming modules."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import timm
import torch
from torch import nn
from transformers import GemmaConfig, GemmaModel

from backbones.families import build
from orthotune import RLRRConfig
from orthotune.models import adapt, build_classifier, load_trained, save_trained
from orthotune.models.build import parameter_counts
from orthotune.targets.kinds import module_kinds
from orthotune.training import fit
from orthotune.tuners.norms import scales_with_weight
from training.tiny import config, write_digits

pytestmark = pytest.mark.filterwarnings("ignore:RLRR. .* have no bias")

# Dong et al., CVPR 2024, supplement, table 12: millions of parameters with a head of 100 classes
TABLE_12 = {("resnet18", 1): 0.08, ("resnet18", 10): 0.29, ("resnet50", 1): 0.27, ("resnet50", 10): 0.85}


@pytest.mark.parametrize(("name", "rank"), TABLE_12)
def test_published_parameter_counts(name: str, rank: int) -> None:
    """All convolutions, r (in * kw + out * kh) numbers each; no shift, as they have no bias; norms left alone."""
    model = timm.create_model(name, num_classes=100)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    options = RLRRConfig(r=rank, target_modules="convs", modules_to_save=["fc"])
    adapted = peft.get_peft_model(model, options)
    factors = sum(c.in_channels * c.kernel_size[1] + c.out_channels * c.kernel_size[0] for c in convs)
    count = parameter_counts(adapted, ("fc",))
    assert count["adapter"] == rank * factors
    # 0.0748 where the table has 0.08; the other three are the table's when rounded
    assert abs(count["trainable"] / 1e6 - TABLE_12[name, rank]) < 0.0053
    assert (
        count["trainable"]
        == {
            ("resnet18", 1): 74_809,
            ("resnet18", 10): 286_390,
            ("resnet50", 1): 269_497,
            ("resnet50", 10): 850_870,
        }[name, rank]
    )


@pytest.mark.parametrize(
    ("model", "method", "kinds"),
    [
        ("resnet10t", "goft", {"Conv2d"}),
        ("resnet10t", "rlrr", {"Conv2d", "Norm"}),
        ("resnet10t", "lora", {"Conv2d"}),
        ("convnext_atto", "aoft", {"Conv2d"}),
        ("convnext_atto.d2_in1k", "rlrr", {"Conv2d", "Norm"}),
    ],
)
def test_fit_needs_no_module_names(model: str, method: str, kinds: set[str], tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data", train=3, test=2)
    changes = {"model": model, "model_args": {}, "image_size": 32, "epochs": 1}
    metrics = fit(config(data, tmp_path / "run", method, **changes), quiet=True)
    assert metrics.parameters["adapter"] > 0
    classifier = build_classifier(model, 3, random_weights=True, image_size=32)
    layers = {type(m).__name__ for m in adapt(classifier, method, {}).module.modules() if hasattr(m, "base_layer")}
    assert {name.removeprefix(method.upper()) for name in layers} == kinds


def batch_norms(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in module.named_buffers() if n.endswith("running_mean")}


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("linear", {}),
        ("rlrr", {}),
        ("rlrr", {"target_modules": "norms"}),
        ("goft", {"bias": "all"}),
        ("full", {}),
    ],
)
def test_running_statistics_move_only_with_full_fine_tuning(method: str, values: dict[str, object]) -> None:
    model = adapt(build_classifier("resnet10t", 3, random_weights=True, image_size=32), method, values)
    before = batch_norms(model.module)
    model.train()
    images = torch.randn(4, 3, 32, 32)
    model.logits(images)
    moved = [n for n, b in batch_norms(model.module).items() if not torch.equal(b, before[n])]
    assert before
    assert len(moved) == (len(before) if method == "full" else 0)
    assert set(moved) <= model.trained_tensors().keys()


@pytest.mark.parametrize("method", ["linear", "goft"])
def test_statistics_of_a_trained_head_are_kept_with_it(method: str, tmp_path: Path) -> None:
    def classifier():
        return build_classifier("levit_128s", 3, random_weights=True)

    values = {"target_modules": ["qkv.linear"]} if method == "goft" else {}
    model = adapt(classifier(), method, values)
    before = batch_norms(model.module)
    model.train()
    images = torch.randn(2, 3, 224, 224)
    model.logits(images)
    moved = [n for n, b in batch_norms(model.module).items() if not torch.equal(b, before[n])]
    assert moved
    assert all("head" in n for n in moved)
    assert set(moved) <= model.trained_tensors().keys()
    save_trained(model, tmp_path / "trained")
    back = load_trained(classifier(), method, values, tmp_path / "trained")
    state = back.module.state_dict()
    assert all(torch.equal(state[n], t) for n, t in model.trained_tensors().items())


def test_a_batch_norm_without_weight_is_left_alone() -> None:
    classifier = build_classifier("resnet10t", 3, random_weights=True, image_size=32)
    classifier.module.bn1 = nn.BatchNorm2d(64, affine=False)
    model = adapt(classifier, "goft", {})
    model.train()
    assert not model.module.get_submodule("base_model.model.bn1").training


def test_norms_that_scaling_does_not_suit_are_in_no_set() -> None:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 8,
    }
    gemma = GemmaModel(GemmaConfig(vocab_size=8, **sizes))
    assert "norm" not in frozenset().union(*module_kinds(gemma).values())
    assert not scales_with_weight(timm.layers.BatchNormAct2d(4))
    assert scales_with_weight(timm.layers.BatchNormAct2d(4, apply_act=False))
    assert not scales_with_weight(timm.layers.grn.GlobalResponseNorm(4))


def test_channels_first_norms_of_transformers_convnext() -> None:
    model = peft.get_peft_model(build("convnext"), RLRRConfig(target_modules="norms"))
    layer = model.get_submodule("base_model.model.convnext.embeddings.layernorm")
    assert layer.channels_first
    assert not model.get_submodule("base_model.model.convnext.layernorm").channels_first
