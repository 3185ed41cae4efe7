"""What is found in a model, for every method: the weights that merging gives, the adapter's matrices, the features."""

from __future__ import annotations

import copy
from collections.abc import Callable

import peft
import pytest
import torch
from torch import Tensor, nn

from orthotune import InputError
from orthotune.analysis import inspect, linear_cka
from orthotune.analysis.layers import LayerWeights, block_of, kind_of, weights_of
from orthotune.analysis.projections import projections
from orthotune.methods import METHODS
from orthotune.models import AdaptedModel, build_classifier
from training.tiny import MODEL_ARGS
from tuners.cases import config, model_and_input

ADAPTERS = [name for name, method in METHODS.items() if method.is_adapter]
Adapted = Callable[..., AdaptedModel]


def tensors(model: nn.Module, layer: str) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias of a layer of a plain model, of a part of a fused one where it names a part."""
    if layer.rpartition(".")[2] in ("q", "k", "v"):
        whole, index = layer.rpartition(".")[0], "qkv".index(layer[-1])
        weight, bias = tensors(model, whole)
        return weight.chunk(3)[index], None if bias is None else bias.chunk(3)[index]
    module = model.get_submodule(layer)
    weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight.flatten(1)
    return weight.detach().double(), None if module.bias is None else module.bias.detach().double()


def check_against_merged(layers: list[LayerWeights], plain: nn.Module, merged: nn.Module) -> int:
    """Compare every layer with the plain and the merged model's; how many moved."""
    moved = 0
    for layer in layers:
        (before, bias_before), (after, bias_after) = tensors(plain, layer.name), tensors(merged, layer.name)
        assert torch.equal(layer.before, before)
        torch.testing.assert_close(before if layer.after is None else layer.after, after, rtol=1e-5, atol=1e-6)
        if layer.bias is not None:
            torch.testing.assert_close(layer.bias[0], bias_before)
            torch.testing.assert_close(layer.bias[1], bias_after, rtol=1e-5, atol=1e-6)
        elif layer.after is not None and bias_before is not None:
            torch.testing.assert_close(bias_before, bias_after, rtol=1e-5, atol=1e-6)
        moved += not torch.allclose(before, after)
    return moved


@pytest.mark.filterwarnings("ignore:.*could not build the BOFT:UserWarning")
@pytest.mark.parametrize("method", ADAPTERS)
def test_weights_before_and_after_are_those_that_merging_gives(method: str, adapted: Adapted) -> None:
    model = adapted(method)
    layers = list(weights_of(model.module, "default"))
    names = [layer.name for layer in layers]
    assert len(set(names)) == len(names)
    if model.merge_obstacle():
        assert all(layer.after is None for layer in layers)
        assert any(layer.note for layer in layers if layer.projections)
        assert {"blocks.0.attn.qkv.q", "blocks.1.mlp.fc2"} <= set(names)
        return
    assert len(names) == 1 + 2 * (3 + 1 + 2)
    plain = copy.deepcopy(model.module).unload()
    merged = copy.deepcopy(model.module).merge_and_unload()
    moved = check_against_merged(layers, plain, merged)
    assert moved == sum(1 for layer in layers if layer.after is not None and not torch.equal(layer.after, layer.before))
    assert moved or method in ("ln-tuning", "bitfit")  # which move norms and biases
    assert not any("head" in name for name in names)


@pytest.mark.parametrize(
    ("case", "kind"), [("aoft", "conv1d"), ("qgoft", "conv2d"), ("rlrr", "conv2d"), ("rlrr", "linear")]
)
def test_other_layers(case: str, kind: str) -> None:
    model, _ = model_and_input(kind)
    plain = copy.deepcopy(model)
    adapter = peft.get_peft_model(model, config(case, target_modules=["first"], init_weights=False))
    layers = list(weights_of(adapter, "default"))
    assert [layer.name for layer in layers] == ["first", "second"]
    merged = copy.deepcopy(adapter).merge_and_unload()
    assert check_against_merged(layers, plain, merged) == 1
    assert layers[1].after is None


def test_a_method_of_peft_on_a_transposed_weight() -> None:
    model, _ = model_and_input("conv1d")
    plain = copy.deepcopy(model)
    adapter = peft.get_peft_model(
        model, peft.VeraConfig(target_modules=["first"], r=3, init_weights=False, fan_in_fan_out=True)
    )
    merged = copy.deepcopy(adapter).merge_and_unload()
    assert check_against_merged(list(weights_of(adapter, "default")), plain, merged) == 1


@pytest.mark.parametrize("method", ["lora", "adalora", "vera", "aoft", "fact-tt", "h-adapter-aoft", "rlrr", "qgoft"])
def test_the_matrices_make_up_the_change(method: str, adapted: Adapted) -> None:
    model = adapted(method)
    (layer,) = [x for x in weights_of(model.module, "default") if x.name == "blocks.1.mlp.fc2"]
    tuner = model.module.get_submodule("base_model.model.blocks.1.mlp.fc2")
    found = layer.projections
    assert layer.after is not None
    change = layer.after - layer.before
    if method == "lora":
        want = tuner.scaling["default"] * found["up"] @ found["down"]
    elif method == "adalora":
        middle = tuner.lora_E["default"].double() * tuner.scaling["default"] / tuner.ranknum["default"].double()
        want = found["up"] @ (middle * found["down"])
    elif method == "vera":
        scales = (tuner.vera_lambda_b["default"].double(), tuner.vera_lambda_d["default"].double())
        want = scales[0][:, None] * found["up"] @ (scales[1][:, None] * found["down"])
    elif method == "aoft":
        want = found["up"] @ (tuner.aoft_scale["default"].double()[:, None] * found["down"])
    elif method == "fact-tt":
        core = tuner.factors("default", torch.float64)[1]
        want = torch.cat([found["up"] @ block.T @ found["down"] for block in core], dim=1)
    elif method == "h-adapter-aoft":
        scale = tuner.bottleneck_scale["default"].double()[:, None]
        want = found["up"] @ (scale * found["down"]) @ layer.before
    elif method == "rlrr":
        want = (found["right"] @ found["left"]) * layer.before
    else:
        want = layer.before @ found["rotation"].T - layer.before
    torch.testing.assert_close(change, want.detach(), rtol=1e-5, atol=1e-7)


def test_a_module_around_which_an_adapter_is_has_matrices_and_no_weight(adapted: Adapted) -> None:
    layers = {layer.name: layer for layer in weights_of(adapted("adaptformer").module, "default")}
    assert layers["blocks.0.mlp"].before is None
    assert layers["blocks.0.mlp"].projections["down"].shape == (8, 32)
    assert layers["blocks.0.mlp.fc1"].before is not None
    prompts = {x.name: x.projections for x in weights_of(adapted("vpt-deep-aoft").module, "default") if x.projections}
    assert list(prompts) == ["blocks.0", "blocks.1"]
    assert prompts["blocks.1"]["prompts"].shape == (10, 32)


def test_a_layer_without_an_adapter_has_no_matrices() -> None:
    assert projections(nn.Linear(2, 2), "default") == {}


def test_a_plain_model() -> None:
    model = build_classifier("vit_tiny_patch16_224", 3, image_size=16, random_weights=True, model_args=MODEL_ARGS)
    found = inspect(model.module)
    assert found.settings["adapter"] is None
    assert [layer.name for layer in found.layers][:4] == [
        "patch_embed.proj",
        "blocks.0.attn.qkv.q",
        "blocks.0.attn.qkv.k",
        "blocks.0.attn.qkv.v",
    ]
    assert not any(layer.adapted or layer.movement or layer.projections for layer in found.layers)
    values = model.module.blocks[0].attn.qkv.weight[32:64]
    assert found.layers[2].weight.frobenius == pytest.approx(values.norm().item(), rel=1e-6)
    assert (found.layers[0].block, found.layers[2].block, found.layers[2].kind) == (None, 0, "blocks.#.attn.qkv.k")


def test_training_without_an_adapter_is_compared_with_the_base(adapted: Adapted) -> None:
    model = adapted("full", noise=0.1)
    base = build_classifier("vit_tiny_patch16_224", 3, image_size=16, random_weights=True, model_args=MODEL_ARGS)
    layers = list(weights_of(model.module, None, base.module))
    assert check_against_merged(layers, base.module, model.module) == 13
    found = inspect(model.module, base=base.module, batches=[torch.randn(6, 3, 16, 16)])
    assert all(layer.movement.relative > 0.1 for layer in found.layers)
    assert found.layers[1].movement.bias is None  # which is zero at the start
    assert found.cka.values[1][1] < 0.9999


def test_the_model_stays_as_it_is(adapted: Adapted) -> None:
    model = adapted("boft").module
    before = copy.deepcopy(model.state_dict())
    trained = [p.requires_grad for p in model.parameters()]
    model.train()
    inspect(model, batches=[torch.randn(3, 3, 16, 16)])
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_one_of_several_adapters(adapted: Adapted) -> None:
    model = adapted("aoft").module
    model.add_adapter("other", config("aoft", target_modules=["mlp.fc1"], r=2, init_weights=False))
    found = inspect(model, "other", layers="fc")
    assert [layer.name for layer in found.layers if layer.movement] == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]
    assert found.layers[0].projections["down"].shape == (2, 32)
    assert found.layers[0].defect == pytest.approx(found.layers[0].projections["down"].defect, abs=1e-5) or (
        found.layers[0].defect == pytest.approx(found.layers[0].projections["up"].defect, abs=1e-5)
    )
    with pytest.raises(InputError, match=r"those of the active adapters \(default\): call set_adapter\('other'\)"):
        inspect(model, "other", batches=[torch.randn(2, 3, 16, 16)])


def test_features_are_compared_before_and_after(adapted: Adapted) -> None:
    batches = [torch.randn(4, 3, 16, 16), torch.randn(5, 3, 16, 16)]
    still = inspect(adapted("aoft", noise=0.0).module, layers="fc1", batches=batches).cka
    assert still.blocks == ("blocks.0", "blocks.1")
    assert still.samples == 9
    assert [still.values[i][i] for i in range(2)] == pytest.approx([1, 1])
    model = adapted("lora", noise=0.3).module
    found = inspect(model, layers="fc1", batches=batches).cka

    def outputs(block: int) -> Tensor:
        kept: list[Tensor] = []
        handle = model.base_model.model.blocks[block].register_forward_hook(lambda m, a, y: kept.append(y.mean(1)))
        with torch.no_grad():
            model(torch.cat(batches))
        handle.remove()
        return kept[0]

    after = [outputs(0), outputs(1)]
    with model.disable_adapter():
        before = [outputs(0), outputs(1)]
    want = [[linear_cka(x, y) for y in after] for x in before]
    torch.testing.assert_close(torch.tensor(found.values), torch.tensor(want), rtol=1e-4, atol=1e-5)
    assert found.values[1][1] < 0.999


def test_features_of_a_network_without_blocks_are_those_of_its_stages() -> None:
    model = build_classifier(
        "resnet18", 3, image_size=32, random_weights=True, model_args={"block_args": {}, "channels": [4, 4, 8, 8]}
    ).module
    found = inspect(model, layers="layer1", batches=[torch.randn(4, 3, 32, 32)])
    assert found.cka.blocks == ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    assert [found.cka.values[i][i] for i in range(6)] == pytest.approx([1] * 6)
    assert found.layers[0].kind == "layer1.#.conv1"


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("blocks.3.attn.qkv.q", 3, "blocks.#.attn.qkv.q"),
        ("layers.0.blocks.1.mlp.fc1", 0, "layers.#.blocks.1.mlp.fc1"),
        ("encoder.layer.11", 11, "encoder.layer.#"),
        ("layer1.0.conv2", 0, "layer1.#.conv2"),
        ("fc1", None, "fc1"),
    ],
)
def test_blocks_and_kinds(name: str, block: int | None, kind: str) -> None:
    assert (block_of(name), kind_of(name)) == (block, kind)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adapter_name": "none"}, "no adapter 'none'; it has: default"),
        ({"top": 0}, "top is 0; it must be at least 1"),
        ({"limit": 1}, "limit is 1; it must be at least 2"),
        ({"layers": "("}, r"layers='\(' is no regular expression"),
        ({"layers": "nowhere"}, "no layers that match layers='nowhere'"),
        ({"base": nn.Linear(2, 2)}, "base goes with a model without adapters"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str, adapted: Adapted) -> None:
    with pytest.raises(InputError, match=message):
        inspect(adapted("aoft").module, **arguments)


@pytest.mark.parametrize("method", ["aoft", "oft"])
def test_merged_adapters_are_refused(method: str, adapted: Adapted) -> None:
    model = adapted(method).module
    model.merge_adapter()
    with pytest.raises(InputError, match="has adapters merged into it: call unmerge_adapter"):
        inspect(model)
