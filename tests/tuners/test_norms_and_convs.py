"""RLRR on every kind of norm, and convolutions of every geometry."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import timm
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from orthotune import RLRRConfig
from orthotune.errors import InputError
from tuners.cases import ALL, config

NORMS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "LayerNorm": (lambda: nn.LayerNorm(6), (2, 3, 6)),
    "LayerNorm without bias": (lambda: nn.LayerNorm(6, bias=False), (2, 3, 6)),
    "RMSNorm": (lambda: nn.RMSNorm(6), (2, 3, 6)),
    "LlamaRMSNorm": (lambda: LlamaRMSNorm(6), (2, 3, 6)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6), (2, 6, 4, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6).eval(), (2, 6, 4, 5)),
    "timm LayerNorm": (lambda: timm.layers.LayerNorm(6), (2, 3, 6)),
    "timm LayerNorm2d": (lambda: timm.layers.LayerNorm2d(6), (2, 6, 4, 5)),
}


@pytest.mark.filterwarnings("ignore:.* 1 of 1 layers have no bias")
@pytest.mark.parametrize("name", NORMS)
def test_norm_is_scaled_and_shifted_per_channel(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NORMS[name]
    norm = make()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    x = torch.randn(shape)
    base = norm(x).detach()
    has_bias = getattr(norm, "bias", None) is not None
    model = peft.get_peft_model(nn.Sequential(norm), RLRRConfig(target_modules=["0"])).eval()
    assert torch.equal(model(x), base)
    layer = model.base_model.model[0]
    assert layer.rlrr_right["default"].shape == (1, 6)
    assert ("default" in layer.rlrr_shift) == has_bias
    with torch.no_grad():
        layer.rlrr_right["default"].normal_()
        if has_bias:
            layer.rlrr_shift["default"].normal_()
    view = (1, 6, 1, 1) if len(shape) == 4 else (6,)
    want = base * layer.rlrr_right["default"].view(view)
    if has_bias:
        want = want + layer.rlrr_shift["default"].view(view)
    assert torch.allclose(model(x), want, atol=1e-6)
    merged = model.merge_and_unload(safe_merge=True)
    assert torch.allclose(merged(x), want, atol=1e-5)


GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "dilation": (1, 2), "padding": (0, 2)},
    {"kernel_size": (1, 3), "padding": "same"},
    {"kernel_size": (2, 3), "padding": "valid", "bias": False},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    {"kernel_size": (3, 5), "padding": 2, "padding_mode": "replicate", "stride": 2},
]


@pytest.mark.filterwarnings("ignore:.* 1 of 1 layers have no bias")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("name", [name for name, model in ALL if model == "conv2d"])
def test_convolution_of_any_geometry(name: str, geometry: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **geometry)
    weight = conv.weight.detach().clone()
    x = torch.randn(2, 4, 9, 8)
    base = conv(x).detach()
    options = config(name, target_modules=["0"], init_weights=False)
    if conv.bias is None and options.method == "bitfit":
        with pytest.raises(InputError, match="none of the 1 targeted layers has one: 0"):
            peft.get_peft_model(nn.Sequential(conv), options)
        return
    model = peft.get_peft_model(nn.Sequential(conv), options)
    want = model(x)
    assert want.shape == base.shape
    assert not torch.allclose(want, base, atol=1e-3)
    want.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    layer = model.base_model.model[0]
    matrix = layer.adapt_matrix(layer.to_matrix(weight), "default")
    assert torch.equal(layer.to_matrix(layer.from_matrix(matrix)), matrix)
    merged = model.merge_and_unload()
    assert merged[0].weight.shape == weight.shape
    assert torch.allclose(merged(x), want, atol=1e-5)


def test_rlrr_kernel_layout() -> None:
    """Entry (o * kh + i, c * kw + j) of the matrix is kernel[o, c, i, j], as in the paper."""
    conv = nn.Conv2d(2, 3, (4, 5))
    kernel = conv.weight.detach().clone()
    model = peft.get_peft_model(nn.Sequential(conv), RLRRConfig(target_modules=["0"], r=2))
    layer = model.base_model.model[0]
    assert layer.rlrr_left["default"].shape == (2 * 5, 2)
    assert layer.rlrr_right["default"].shape == (2, 3 * 4)
    assert layer.rlrr_shift["default"].shape == (3,)
    matrix = layer.to_matrix(kernel)
    for o, c, i, j in [(0, 0, 0, 0), (2, 1, 3, 4), (1, 0, 2, 3)]:
        assert matrix[o * 4 + i, c * 5 + j] == kernel[o, c, i, j]
