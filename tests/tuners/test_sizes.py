"""Parameter counts on ViT-B/16 and the starts that the configurations name."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import timm
import torch
from torch import nn

from orthotune import AOFTConfig, GOFTConfig, RLRRConfig

LINEAR = ["q", "k", "v", "attn.proj", "fc1", "fc2"]
NORMS = ["norm1", "norm2", "norm"]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (GOFTConfig(target_modules=["q", "v"]), 18_408),
        (GOFTConfig(target_modules=LINEAR), 82_872),
        (GOFTConfig(target_modules=["q", "v"], quasi=True), 4 * 18_408),
        (GOFTConfig(target_modules=LINEAR, quasi=True), 4 * 82_872),
        (RLRRConfig(target_modules=[*LINEAR, *NORMS]), 287_232),
        (AOFTConfig(target_modules=["q", "v"], r=8), 36_864 + 8 * 24),
        (AOFTConfig(target_modules=["q", "v"], r=8, learn_scale=False), 36_864),
    ],
    ids=lambda value: value.peft_type.value.lower() if hasattr(value, "peft_type") else str(value),
)
def test_parameters_on_vit_b16(options: Any, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    adapted = peft.get_peft_model(model, options, low_cpu_mem_usage=True)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("start", ["paper", "normal", "uniform", "constant", "zero", True, False])
def test_rlrr_starts(start: Any) -> None:
    torch.manual_seed(0)
    options = RLRRConfig(target_modules=["0"], init_weights=start)
    layer = peft.get_peft_model(nn.Sequential(nn.Linear(600, 500)), options).base_model.model[0]
    left, right = layer.rlrr_left["default"], layer.rlrr_right["default"]
    assert left.shape == (600, 1)
    assert right.shape == (1, 500)
    assert layer.rlrr_shift["default"].shape == (500,)
    if start == "paper":
        assert 0.99 / 600**0.5 * 0.95 < left.abs().max() <= 1 / 600**0.5
        assert 0.95 < right.abs().max() <= 1
        assert not layer.rlrr_shift["default"].any()
    if start in ("zero", True):
        assert not (left @ right).any()
    if start == "constant":
        assert left.unique().numel() == right.unique().numel() == 1
    if start in ("normal", "uniform", False):
        assert (left @ right).abs().max() > 0


def test_aoft_starts() -> None:
    torch.manual_seed(0)
    weight = torch.randn(30, 40)

    def delta(**kwargs: Any) -> torch.Tensor:
        base = nn.Sequential(nn.Linear(40, 30))
        base[0].weight.data = weight.clone()
        model = peft.get_peft_model(base, AOFTConfig(target_modules=["0"], r=4, **kwargs))
        return model.merge_and_unload()[0].weight - weight

    assert not delta().any()
    assert delta(learn_scale=False).abs().max() < 1e-6
    for kwargs in (
        {"init_weights": "paper"},
        {"init_weights": "paper", "learn_scale": False},
        {"init_weights": False},
    ):
        assert torch.linalg.matrix_rank(delta(**kwargs), rtol=1e-4) == 4
