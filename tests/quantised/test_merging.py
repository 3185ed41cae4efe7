"""Merging into a quantised weight: what is rounded, what comes back bit for bit, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import reference
from orthotune import InputError
from quantised.kinds import IN, KINDS, MERGEABLE, OUT, config, dense_weight, need, quantised
from quantised.test_reference import adapted
from tuners.test_reference import dense_layer

METHODS = ["goft", "qgoft-output-scale", "rlrr", "rlrr-without-w", "aoft"]
rounds = pytest.mark.filterwarnings("ignore:.*quantises its weight again:UserWarning")

# largest error of one entry, in units of its row's or block's largest entry, that each format makes: half a step
# between neighbouring numbers (8 bit: 127 a side; nf4: widest gap 0.304; fp4: 1/3; int4: 7.5 a side; float8 e4m3: 2^-4
# relative)
HALF_STEP = {
    "bnb-8bit": 0.5 / 127,
    "bnb-8bit-outliers": 0.5 / 127,
    "bnb-nf4": 0.304 / 2,
    "bnb-nf4-in-float": 0.304 / 2,
    "bnb-fp4-not-nested": 1 / 6,
    "torchao-int8": 0.5 / 127,
    "torchao-intx-int4": 0.5 / 7.5,
    "torchao-float8": 2**-4,
}


def stored(layer: Any) -> dict[str, Tensor]:
    """The bytes of all tensors that a layer's state dict holds, taken apart down to plain ones."""
    tensors = {}
    for key, value in layer.state_dict().items():
        names = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else []
        tensors.update({f"{key}.{name}": getattr(value, name) for name in names} if names else {key: value.data})
    return {key: value.clone().reshape(-1).view(torch.uint8) for key, value in tensors.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two layers hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@rounds
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("kind", MERGEABLE)
@pytest.mark.parametrize("name", METHODS)
def test_merged_weight_is_the_adapted_one_rounded_once(name: str, kind: str, safe: bool) -> None:
    base, weight, bias = quantised(kind)
    model = adapted(base, name).train()
    layer = model.base_model.model[0]
    leaves = {n.partition(".")[0]: p.detach().double() for n, p in layer.named_parameters() if p.requires_grad}
    want, want_bias = dense_layer(layer, weight, bias, leaves)
    model.merge_adapter(safe_merge=safe)
    got = dense_weight(kind, layer.get_base_layer())
    blocks = 32 if "intx" in kind else 64 if "nf4" in kind or "fp4" in kind else IN
    largest = want.flatten().unflatten(0, (-1, blocks)).abs().amax(1, keepdim=True).expand(-1, blocks).reshape_as(want)
    # nested scales are 8-bit numbers themselves, 0.9 / 64 of the largest apart
    scales = 0.01 * want.abs().max() if "nf4" in kind else 0.0
    # a tenth more: the library rounds to float16 before it quantises to 8 bits, and the scales too
    assert ((got - want).abs() <= 1.1 * HALF_STEP[kind] * largest + scales).all()
    assert reference.relative_error(layer.get_base_layer().bias, want_bias) <= 1e-6
    x = torch.randn(3, IN)
    assert reference.relative_error(model(x), x.double() @ got.T + want_bias) <= 1e-5


@rounds
@pytest.mark.parametrize("run_between", [False, True])
@pytest.mark.parametrize("kind", MERGEABLE)
@pytest.mark.parametrize("name", METHODS)
def test_unmerging_gives_the_same_bits(name: str, kind: str, run_between: bool) -> None:
    base, _, _ = quantised(kind)
    model = adapted(base, name).eval()
    layer, x = model.base_model.model[0], torch.randn(3, IN)
    want = model(x)
    before = stored(layer.get_base_layer())
    for _ in range(3):
        model.merge_adapter()
        if run_between:
            model(x)
        assert not same(stored(layer.get_base_layer()), before)
        model.unmerge_adapter()
    assert same(stored(layer.get_base_layer()), before)
    assert torch.equal(model(x), want)


@pytest.mark.parametrize("kind", MERGEABLE)
def test_quantising_a_dequantised_weight_uses_the_same_settings(kind: str) -> None:
    """Its numbers are on the grid already, so the same settings give the same grid; nested scales round once more."""
    base, weight, _ = quantised(kind)
    before = stored(base)
    tolerance = 2 * HALF_STEP[kind] if "intx" in kind else 1e-2  # whose scale is of the larger of -min / 8 and max / 7
    layer = adapted(base, "goft").base_model.model[0]
    with pytest.warns(UserWarning, match="quantises its weight again"):
        layer.set_base_weight(layer.base_weight().to(layer.weight_dtype))
    after = stored(layer.get_base_layer())
    text = "bitsandbytes__"  # the settings, with the scales' offset in decimal digits
    assert {k: len(v) for k, v in after.items() if text not in k} == {
        k: len(v) for k, v in before.items() if text not in k
    }
    assert reference.relative_error(dense_weight(kind, layer.get_base_layer()), weight) <= tolerance


@rounds
@pytest.mark.filterwarnings("ignore:All adapters are already merged:UserWarning")
@pytest.mark.parametrize("kind", MERGEABLE)
@pytest.mark.parametrize("name", METHODS)
def test_merge_and_unload_gives_the_quantised_layer_back(name: str, kind: str) -> None:
    base, _, _ = quantised(kind)
    model = adapted(copy.deepcopy(base), name).train()
    model.merge_adapter()
    x = torch.randn(3, IN)
    merged = model(x)
    plain = model.merge_and_unload()
    assert type(plain[0]) is type(base)
    assert torch.equal(plain(x), merged)
    fresh = adapted(base, name)
    assert type(fresh.merge_and_unload(safe_merge=True)[0]) is type(base)


@rounds
@pytest.mark.parametrize("kind", MERGEABLE)
def test_adapters_merged_one_after_the_other_and_disabled(kind: str) -> None:
    base, _, _ = quantised(kind)
    x = torch.randn(3, IN)
    model = adapted(base, "goft").train()
    with model.disable_adapter():
        plain = model(x)
    model.add_adapter("other", config("goft", target_modules=["0"], init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    both = model(x)
    model.merge_adapter(adapter_names=["default"])
    with pytest.warns(UserWarning, match="additionally merging"):
        model.merge_adapter(adapter_names=["default", "other"])
    assert reference.relative_error(model(x), both) <= 0.5
    with model.disable_adapter():
        assert torch.equal(model(x), plain)
    assert torch.equal(model(x), both)


@rounds
@pytest.mark.parametrize("kind", MERGEABLE)
def test_another_change_between_merging_and_unmerging_is_kept(kind: str) -> None:
    base, weight, _ = quantised(kind)
    layer = adapted(base, "goft").base_model.model[0]
    layer.merge()
    layer.set_base_weight((2 * layer.base_weight()).to(layer.weight_dtype))
    merged = dense_weight(kind, layer.get_base_layer())
    layer.unmerge()
    got = dense_weight(kind, layer.get_base_layer())
    assert not torch.equal(got, weight)
    assert (got - (weight + merged / 2)).abs().max() <= 3 * HALF_STEP[kind] * merged.abs().max()


@pytest.mark.parametrize("kind", MERGEABLE)
def test_safe_merge_leaves_a_broken_adapter_out(kind: str) -> None:
    base, _, _ = quantised(kind)
    model = adapted(base, "goft")
    layer = model.base_model.model[0]
    before = stored(layer.get_base_layer())
    next(p for p in layer.parameters() if p.requires_grad).data[0] = float("nan")
    with pytest.raises(InputError, match=r"NaNs detected.*'0'"):
        model.merge_adapter(safe_merge=True)
    assert not layer.merged
    assert same(stored(layer.get_base_layer()), before)


@pytest.mark.parametrize("method", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize("kind", ["gptq", "gptq-old-names"])
def test_a_packed_layer_is_refused_before_any_layer_is_merged(kind: str, method: str) -> None:
    packed, _, _ = quantised(kind, sizes=(IN, OUT))
    model = nn.Sequential(nn.Linear(IN, IN), packed)
    before = model[0].weight.detach().clone()
    model = peft.get_peft_model(model, config("goft", target_modules=["0", "1"], init_weights=False))
    with pytest.raises(InputError, match=r"cannot be merged into layer '1': it is a \w*PackedLinear, .* unmerged"):
        getattr(model, method)()
    assert torch.equal(model.base_model.model[0].get_base_layer().weight, before)
    with pytest.raises(InputError, match="layer '1'"):
        model.base_model.model[1].merge()
    assert type(model.unload()[1]) is KINDS[kind][0]


def test_a_layer_not_quantised_yet_is_refused() -> None:
    need("bitsandbytes")
    import bitsandbytes as bnb

    layer = adapted(bnb.nn.Linear4bit(IN, OUT), "goft").base_model.model[0]
    with pytest.raises(InputError, match="not quantised yet: move the model"):
        layer.merge()
