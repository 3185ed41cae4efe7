"""What PEFT promises of any method: starting points, merging, several adapters, saving, precision, copies."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

import orthotune
from orthotune.errors import InputError
from tuners.cases import (
    ALL,
    LAYERS,
    LINEAR,
    OWN,
    adapter_layers,
    config,
    is_mergeable,
    model_and_input,
    targets,
)


def adapted(name: str, model_name: str, dtype: torch.dtype = torch.float32, **kwargs):
    model, x = model_and_input(model_name, dtype)
    base = model(x)
    options = config(name, **{**targets(name, model_name), **kwargs})
    return peft.get_peft_model(model, options).eval(), x, base


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_default_start_is_a_no_op(name: str, model_name: str) -> None:
    model, x, base = adapted(name, model_name)
    if not model.peft_config["default"].starts_as_no_op:
        pytest.skip("a method that says it does not start as a no-op")
    assert torch.allclose(model(x), base, atol=1e-6)


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_every_parameter_gets_a_gradient_from_the_default_start(name: str, model_name: str) -> None:
    """A product of two zeros would never move; after one step every parameter must be able to."""
    model, x, _ = adapted(name, model_name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_merged_is_the_same_function_and_has_the_original_keys(name: str, model_name: str, safe: bool) -> None:
    model, x, base = adapted(name, model_name, init_weights=False)
    want = model(x)
    assert not torch.allclose(want, base, atol=1e-4)
    if not is_mergeable(model):
        with pytest.raises(InputError, match="cannot be merged into layer"):
            model.merge_adapter(safe_merge=safe)
        with pytest.raises(InputError, match="cannot be merged into layer"):
            model.merge_and_unload(safe_merge=safe)
        assert torch.equal(model(x), want)
        assert torch.equal(model.unload()(x), base)
        return
    model.merge_adapter(safe_merge=safe)
    assert torch.allclose(model(x), want, atol=2e-5)
    model.unmerge_adapter()
    merged = model.merge_and_unload(safe_merge=safe)
    assert torch.allclose(merged(x), want, atol=2e-5)
    fresh, _ = model_and_input(model_name)
    assert {k: v.shape for k, v in merged.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_merging_and_unmerging_gives_the_same_bits(name: str, model_name: str, dtype: torch.dtype) -> None:
    model, _, _ = adapted(name, model_name, init_weights=False)
    if not is_mergeable(model):
        pytest.skip("no merged form")
    model.base_model.model.to(dtype)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(20):
        model.merge_adapter()
        model.unmerge_adapter()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OWN if name in LINEAR])
def test_a_thousand_merges_in_bfloat16_leave_the_weight_as_it_was(name: str) -> None:
    base = nn.Sequential(nn.Linear(768, 768)).bfloat16()
    before = base[0].weight.detach().clone()
    model = peft.get_peft_model(base, config(name, target_modules=["0"], init_weights=False))
    if not is_mergeable(model):
        pytest.skip("no merged form")
    for _ in range(1000):
        model.merge_adapter()
        model.unmerge_adapter()
    assert torch.equal(model.base_model.model[0].weight, before)


def other_targets(name: str, model_name: str) -> dict[str, object]:
    """Targets of a second adapter: one of the first one's layers, where they can be told."""
    return targets(name, model_name) if model_name == "vit" else {"target_modules": LAYERS[1:]}


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_several_adapters_switch_combine_and_merge_in_part(name: str, model_name: str) -> None:
    model, x, base = adapted(name, model_name, init_weights=False)
    only_first = model(x)
    torch.manual_seed(1)
    model.add_adapter("other", config(name, **other_targets(name, model_name), init_weights=False))
    assert torch.equal(model(x), only_first)
    model.set_adapter("other")
    only_other = model(x)
    assert not torch.allclose(only_first, only_other, atol=1e-3)
    model.base_model.set_adapter(["default", "other"])
    both = model(x)
    if is_mergeable(model):
        model.merge_adapter(adapter_names=["default"])
        assert torch.allclose(model(x), only_first, atol=2e-5)
        with pytest.warns(UserWarning, match="additionally merging"):
            model.merge_adapter(adapter_names=["default", "other"])
        assert torch.allclose(model(x), both, atol=1e-4)
        model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(x), base)
    assert torch.equal(model(x), both)
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(model(x), only_first)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_saved_adapter_comes_back_with_its_head(
    name: str, model_name: str, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    model, x, _ = adapted(name, model_name, init_weights=False, modules_to_save=["head"])
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.add_(1)
    want = model(x)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    fresh, _ = model_and_input(model_name)
    back = peft.PeftModel.from_pretrained(
        fresh, tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert torch.equal(back(x), want)
    trainable = {n for n, p in back.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    assert any("head" in n for n in trainable)


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_copies_compute_the_same(name: str, model_name: str) -> None:
    model, x, _ = adapted(name, model_name, init_weights=False)
    want = model(x)
    assert torch.equal(copy.deepcopy(model)(x), want)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), want)
    if not is_mergeable(model):
        return
    model.merge_adapter()
    clone = copy.deepcopy(model)
    clone.unmerge_adapter()
    assert torch.equal(clone(x), want)
    assert all(layer.merged for layer in adapter_layers(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapters_in_float32", [True, False])
@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_half_precision_stays_near_float32(
    name: str, model_name: str, dtype: torch.dtype, adapters_in_float32: bool
) -> None:
    model, x, _ = adapted(name, model_name, init_weights=False)
    want = model(x)
    model.base_model.model.to(dtype)
    if adapters_in_float32:
        for module in model.modules():
            if isinstance(module, nn.ParameterDict):
                module.float()
    got = model(x.to(dtype))
    assert got.dtype == dtype
    assert torch.allclose(got.float(), want, atol=0.1 if dtype is torch.bfloat16 else 0.02)
    got.sum().backward()


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_autocast(name: str, model_name: str) -> None:
    model, x, _ = adapted(name, model_name, init_weights=False)
    want = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x)
        got.float().square().sum().backward()
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.float(), want, atol=0.1)
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32, parameter_name


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_gradient_checkpointing_gives_the_same_gradients(name: str, model_name: str) -> None:
    model, x, _ = adapted(name, model_name, init_weights=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    want = torch.autograd.grad(model(x).square().sum(), trained)
    y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    got = torch.autograd.grad(y.square().sum(), trained)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "model_name"), [(name, model) for name, model in ALL if name in OWN])
def test_compiled_model_computes_the_same(name: str, model_name: str) -> None:
    model, x, _ = adapted(name, model_name, init_weights=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    want = model(x)
    want_grads = torch.autograd.grad(want.square().sum(), trained)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = compiled(x)
    assert torch.allclose(got, want, atol=1e-5)
    for a, b in zip(torch.autograd.grad(got.square().sum(), trained), want_grads, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.parametrize("name", LINEAR)
def test_adapter_on_top_of_another_method(name: str) -> None:
    """An adapter over a LoRA layer acts on LoRA's result, merged or not."""
    model, x = model_and_input("linear")
    lora = peft.LoraConfig(target_modules=["first"], r=2, init_lora_weights=False)
    model = peft.inject_adapter_in_model(lora, model, "lora")
    lora_weight = model.first.weight + model.first.get_delta_weight("lora")
    model = peft.inject_adapter_in_model(config(name, target_modules=["first"], init_weights=False), model, "ours")
    layer = model.first
    want = layer(x)
    if layer.merge_obstacle("ours"):
        pytest.skip("no merged form")
    matrix, bias = layer.adapt(lora_weight, layer.get_base_layer().bias, "ours")
    assert torch.allclose(want, nn.functional.linear(x, matrix, bias), atol=1e-5)
    layer.merge()
    assert torch.allclose(layer(x), want, atol=1e-5)
    assert torch.allclose(layer.get_base_layer().weight, matrix, atol=1e-5)


@pytest.mark.parametrize("bias", ["none", "all", "only"])
@pytest.mark.parametrize("name", [name for name in OWN if name in LINEAR])
def test_bias_option_trains_the_biases_it_names(name: str, bias: str) -> None:
    only = f"{config(name).method}_only"
    model, _, _ = adapted(name, "linear", bias=only if bias == "only" else bias)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and n.endswith(".bias")}
    prefix = "base_model.model."
    want = {
        "none": set(),
        "only": {f"{prefix}{layer}.base_layer.bias" for layer in LAYERS},
        "all": {f"{prefix}{layer}.base_layer.bias" for layer in LAYERS} | {f"{prefix}norm.bias", f"{prefix}head.bias"},
    }
    assert trained == want[bias]


def test_registration_is_idempotent() -> None:
    import importlib

    importlib.reload(orthotune.tuners)
    importlib.reload(orthotune)
    assert peft.PeftType("GOFT") is peft.PeftType.GOFT
    assert peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType.AOFT] is orthotune.AOFTConfig
    assert pickle.loads(pickle.dumps(peft.PeftType.RLRR)) is peft.PeftType.RLRR
