"""What PEFT promises of any method, for those that wrap modules; and that these refuse to merge."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from orthotune.errors import InputError
from tuners.transformers_and_timm import CONFIGS, MODELS, config, images, logits, timm_vit, wraps

ALL = [(name, model) for name in CONFIGS for model in MODELS if wraps(name, model)]
HEADS = {"timm": "head", "transformers": "classifier"}


def adapted(name: str, model_name: str, dtype: torch.dtype = torch.float32, **kwargs):
    """A model with an adapter that is no no-op, an image for it, and what the model made of it before."""
    base, x = MODELS[model_name]().to(dtype), images(dtype=dtype)
    before = logits(base, x)
    return peft.get_peft_model(base, config(name, **{"init_weights": False, **kwargs})).eval(), x, before


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_disabled_and_unloaded_it_is_the_plain_model(name: str, model_name: str) -> None:
    model, x, before = adapted(name, model_name)
    want = logits(model, x)
    assert not torch.allclose(want, before, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model, x), before)
    assert torch.equal(logits(model, x), want)
    plain, fresh = model.unload(), MODELS[model_name]()
    assert torch.equal(logits(plain, x), before)
    assert {n: type(m) for n, m in plain.named_modules()} == {n: type(m) for n, m in fresh.named_modules()}


@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize("name", CONFIGS)
def test_merging_is_refused_before_anything_is_changed(name: str, call: str) -> None:
    model, x, _ = adapted(name, "timm", modules_to_save=["head"])
    want = logits(model, x)
    with pytest.raises(InputError, match=r"cannot be merged into layer .*: .*unload\(\)"):
        getattr(model, call)()
    assert torch.equal(logits(model, x), want)
    layer = next(m for m in model.modules() if hasattr(m, "not_mergeable"))
    with pytest.raises(InputError, match="cannot be merged"):
        layer.merge()


@pytest.mark.parametrize("init_weights", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_says_whether_it_starts_as_a_no_op(name: str, init_weights: bool) -> None:
    base, x = timm_vit(), images()
    before, options = base(x), config(name, init_weights=init_weights)
    model = peft.get_peft_model(base, options).eval()
    assert torch.allclose(model(x), before, atol=1e-6) == options.starts_as_no_op


@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")  # PEFT 0.18, of a model made here
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_saved_adapter_comes_back_with_its_head(
    name: str, model_name: str, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    model, x, _ = adapted(name, model_name, modules_to_save=[HEADS[model_name]])
    want = logits(model, x)
    model.save_pretrained(tmp_path)
    back = peft.PeftModel.from_pretrained(
        MODELS[model_name](), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert torch.equal(logits(back, x), want)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in back.named_parameters() if p.requires_grad} == trained
    saved = peft.utils.load_peft_weights(tmp_path)
    assert all(f".{model.peft_config['default'].method}_" in key or HEADS[model_name] in key for key in saved)
    assert sum(value.numel() for value in saved.values()) == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_every_parameter_gets_a_gradient(name: str, model_name: str) -> None:
    model, x, _ = adapted(name, model_name)
    logits(model, x).square().sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    for parameter_name, parameter in trained.items():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_several_adapters_switch_combine_and_go(name: str, model_name: str) -> None:
    model, x, _ = adapted(name, model_name)
    first = logits(model, x)
    torch.manual_seed(1)
    model.add_adapter("other", config(name, init_weights=False))
    assert torch.equal(logits(model, x), first)
    model.set_adapter("other")
    other = logits(model, x)
    assert not torch.allclose(first, other, atol=1e-3)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model, x)
    assert not torch.allclose(both, first, atol=1e-3)
    model.base_model.set_adapter(["other", "default"])
    assert torch.allclose(logits(model, x), both, atol=1e-5)  # neither prompts nor branches have an order
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(logits(model, x), first)


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_each_sample_sees_its_own_adapter(name: str, model_name: str) -> None:
    model, _, _ = adapted(name, model_name)
    model.add_adapter("other", config(name, init_weights=False))
    x, names = images(4), ["other", "default", "other", "default"]
    rows = []
    for row, adapter in zip(x, names, strict=True):
        model.set_adapter(adapter)
        rows.append(logits(model, row[None]))
    assert torch.allclose(logits(model, x, adapter_names=names), torch.cat(rows), atol=1e-5)


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_gradient_checkpointing_gives_the_same_gradients(name: str, model_name: str) -> None:
    model, x, _ = adapted(name, model_name, dropout=0.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    want = torch.autograd.grad(logits(model, x).square().sum(), trained)
    inner = model.base_model.model
    if model_name == "timm":
        inner.set_grad_checkpointing()
    else:  # transformers 5's name, then 4's
        enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    got = torch.autograd.grad(logits(model, x).square().sum(), trained)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("adapters_in_float32", [True, False])
@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_half_precision_stays_near_float32(name: str, model_name: str, adapters_in_float32: bool) -> None:
    model, x, _ = adapted(name, model_name)
    want = logits(model, x)
    model.base_model.model.bfloat16()
    if adapters_in_float32:
        for module in model.modules():
            if isinstance(module, nn.ParameterDict):
                module.float()
    got = logits(model, x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.float(), want, atol=0.1)


@pytest.mark.parametrize(("name", "model_name"), ALL)
def test_autocast(name: str, model_name: str) -> None:
    model, x, _ = adapted(name, model_name)
    want = logits(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        got = logits(model, x)
        got.float().square().sum().backward()
    assert torch.allclose(got.float(), want, atol=0.1)
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32, parameter_name


@pytest.mark.parametrize("name", CONFIGS)
def test_adapter_takes_the_dtype_of_the_wrapped_module(name: str) -> None:
    model = peft.get_peft_model(timm_vit().double(), config(name))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    half = peft.get_peft_model(timm_vit().bfloat16(), config(name), autocast_adapter_dtype=False)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", CONFIGS)
def test_copies_compute_the_same(name: str) -> None:
    model, x, _ = adapted(name, "timm")
    want = logits(model, x)
    assert torch.equal(copy.deepcopy(model)(x), want)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), want)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGS)
def test_compiled_model_computes_the_same(name: str) -> None:
    model, x, _ = adapted(name, "timm")
    want = logits(model, x)
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(model, backend="aot_eager", fullgraph=True)(x), want, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.parametrize("name", CONFIGS)
def test_over_a_model_that_lora_adapts(name: str) -> None:
    base, x = timm_vit(), images()
    base = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["fc1"], init_lora_weights=False), base)
    lora = base(x)
    model = peft.get_peft_model(base, config(name, init_weights=False))
    assert not torch.allclose(model(x), lora, atol=1e-3)
    with torch.no_grad():
        for layer in model.modules():
            if hasattr(layer, "not_mergeable"):
                layer.enable_adapters(False)
    assert torch.equal(model(x), lora)


@pytest.mark.parametrize("field", ["bias", "fan_in_fan_out"])
@pytest.mark.parametrize("name", CONFIGS)
def test_fields_that_would_do_nothing_are_refused(name: str, field: str) -> None:
    method = config(name).method
    with pytest.raises(InputError, match=field):
        config(name, **{field: {"bias": f"{method}_only", "fan_in_fan_out": True}[field]})


@pytest.mark.parametrize("dropout", [-0.1, 1.0, "much", True])
@pytest.mark.parametrize("name", CONFIGS)
def test_dropout_out_of_range(name: str, dropout: object) -> None:
    with pytest.raises(InputError, match=r"dropout=.*at least 0 and less than 1"):
        config(name, dropout=dropout)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_to_adapt_names_what_there_is(name: str) -> None:
    with pytest.raises(InputError, match=r"leave nothing to adapt; .* can be adapted: blocks\.0"):
        peft.get_peft_model(timm_vit(), config(name, target_modules=["layer"]))
    with pytest.raises(InputError, match=r"exclude_modules='blocks.*leave nothing to adapt"):
        peft.get_peft_model(timm_vit(), config(name, exclude_modules=r"blocks\..*"))
