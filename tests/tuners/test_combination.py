"""Combined adapters against the formula that each combination stands for, in float64; saving, training, bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import reference
from orthotune import (
    AOFTConfig,
    BitFitConfig,
    FacTConfig,
    GOFTConfig,
    InputError,
    RLRRConfig,
    SSFConfig,
    orthogonality_defect,
    regularization_loss,
)
from orthotune.tuners.goft import GOFTLayer
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.rlrr import RLRRNorm
from tuners import cases

CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "goft": (GOFTConfig, {}),
    "goft-output-scale": (GOFTConfig, {"scale": "output"}),
    "goft-input-scale": (GOFTConfig, {"scale": "input"}),
    "goft-3-trees": (GOFTConfig, {"num_trees": 3}),
    "qgoft": (GOFTConfig, {"quasi": True}),
    "qgoft-output-scale": (GOFTConfig, {"quasi": True, "scale": "output"}),
    "qgoft-norm-frozen": (GOFTConfig, {"quasi": True, "freeze": "norm"}),
    "qgoft-angle-frozen": (GOFTConfig, {"quasi": True, "freeze": "angle"}),
    "qgoft-composed": (
        GOFTConfig,
        {"quasi": True, "num_trees": 3, "permutations": [0, 0, 1], "transposed": [False, True, True]},
    ),
    "rlrr": (RLRRConfig, {}),
    "rlrr-r3": (RLRRConfig, {"r": 3}),
    "rlrr-left": (RLRRConfig, {"right": False}),
    "rlrr-right": (RLRRConfig, {"left": False}),
    "rlrr-no-residual": (RLRRConfig, {"residual": False}),
    "rlrr-no-residual-r2": (RLRRConfig, {"residual": False, "r": 2}),
    "rlrr-without-w": (RLRRConfig, {"multiply_base": False, "r": 2}),
    "rlrr-no-shift": (RLRRConfig, {"shift": False}),
    "aoft": (AOFTConfig, {"r": 3}),
    "aoft-no-scale": (AOFTConfig, {"r": 3, "learn_scale": False}),
    "aoft-2-updates-no-scale": (AOFTConfig, {"r": 3, "num_updates": 2, "learn_scale": False}),
    "ssf": (SSFConfig, {}),
    "ssf-no-shift": (SSFConfig, {"shift": False}),
}
MODELS = ["linear", "conv1d", "conv2d"]
NORMS = ["first", "norm", "second"]
TARGETS = {"one": ["first", "second"], "two": ["second"], "three": ["first", "second"]}  # two lacks a layer
Adapters = dict[str, Any]


def make_config(name: str, **kwargs: Any) -> Any:
    cls, fields = CONFIGS[name]
    return cls(**{**fields, **kwargs})


def combined(
    adapters: Adapters, weights: list[float], combination_type: str | None = None, model_name: str = "linear"
) -> tuple[nn.Module, torch.Tensor]:
    """Return a float64 model with random adapters and "new", which combines them, and an input."""
    base, x = cases.model_and_input(model_name, torch.float64)
    torch.manual_seed(1)
    (first, config), *others = adapters.items()
    model = peft.get_peft_model(base, config, adapter_name=first)
    for name, config in others:
        model.add_adapter(name, config)
    model = model.double().eval()
    model.add_weighted_adapter(list(adapters), weights, "new", combination_type)
    model.set_adapter("new")
    return model, x


def configs(*names: str, **kwargs: Any) -> Adapters:
    adapters = zip(TARGETS, names, strict=False)
    return {a: make_config(n, init_weights=False, **{"target_modules": TARGETS[a], **kwargs}) for a, n in adapters}


def layers_of(model: nn.Module) -> dict[str, AdapterLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, AdapterLayer)}


def assert_merged(model: nn.Module, x: torch.Tensor, want: Callable[[AdapterLayer], torch.Tensor]) -> None:
    """Check the weight that merging makes in every layer, seen as a matrix (n, D), and that outputs are the same."""
    output = model(x)
    expected = {name: want(layer) for name, layer in layers_of(model).items()}
    base = {name: layer.get_base_layer().weight.clone() for name, layer in layers_of(model).items()}
    model.merge_adapter()
    for name, layer in layers_of(model).items():
        weight = layer.get_base_layer().weight
        assert not torch.equal(weight, base[name])
        assert reference.relative_error(layer.to_matrix(weight), expected[name]) < 1e-12, name
    assert reference.relative_error(model(x), output) < 1e-10
    model.unmerge_adapter()


def change(layer: AdapterLayer, adapter: str) -> torch.Tensor:
    """W*_i - W, zero where the layer has no such adapter."""
    matrix = layer.to_matrix(layer.get_base_layer().weight)
    return layer.adapt_matrix(matrix, adapter) - matrix if adapter in layer.adapter_options else matrix * 0


CAT = [
    ("rlrr", "rlrr-r3"),
    ("rlrr-left", "rlrr-left"),
    ("rlrr-left", "rlrr-right"),
    ("rlrr-no-residual", "rlrr-no-residual-r2"),
    ("rlrr-without-w", "rlrr-without-w"),
    ("rlrr", "rlrr-no-shift"),
    ("aoft", "aoft"),
    ("aoft", "aoft-no-scale", "aoft-2-updates-no-scale"),
    ("aoft",),
    ("ssf", "ssf-no-shift"),
]


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("names", CAT, ids="+".join)
def test_changes_are_added_up(names: tuple[str, ...], model_name: str) -> None:
    weights = [0.7, -1.3, 0.4][: len(names)]
    adapters = configs(*names)
    model, x = combined(adapters, weights, "linear" if names[0] == "ssf" else "cat", model_name)

    def want(layer: AdapterLayer) -> torch.Tensor:
        parts = [w * change(layer, a) for a, w in zip(adapters, weights, strict=True)]
        return layer.to_matrix(layer.get_base_layer().weight) + sum(parts)

    assert_merged(model, x, want)
    for layer in layers_of(model).values():
        bias = layer.get_base_layer().bias
        changes = [
            w * (layer.adapt_bias(bias, a) - bias)
            for a, w in zip(adapters, weights, strict=True)
            if a in layer.adapter_options
        ]
        assert torch.allclose(layer.adapt_bias(bias, "new") - bias, sum(changes), atol=1e-14)


def test_a_smaller_bottleneck_is_filled_up() -> None:
    adapters = {
        "one": make_config("aoft", init_weights=False, target_modules=["first"]),
        "two": make_config("aoft", init_weights="paper", target_modules=["first"], r=1, learn_scale=False),
    }
    model, x = combined(adapters, [0.5, 2.0])
    assert model.peft_config["new"].num_updates == 2
    assert_merged(model, x, lambda layer: layer.weight + 0.5 * change(layer, "one") + 2 * change(layer, "two"))


@pytest.mark.parametrize("names", [("rlrr-r3", "rlrr-r3"), ("rlrr-left", "rlrr-left"), ("rlrr-no-residual-r2",) * 2])
def test_linear_adds_up_the_factors(names: tuple[str, ...]) -> None:
    weights = {"one": 0.7, "two": -0.4}
    model, x = combined(configs(*names), list(weights.values()))

    def want(layer: AdapterLayer) -> torch.Tensor:
        options = layer.adapter_options["one" if "one" in layer.adapter_options else "two"]
        rank = torch.arange(options.r)
        starts = torch.zeros(options.r, 1, dtype=torch.float64) if options.residual else (rank == 0)[:, None].double()
        left, right = torch.ones(layer.in_features, 1).double(), torch.ones(1, layer.out_features).double()
        own = [a for a in weights if a in layer.adapter_options]
        if options.left:
            left = starts.T + sum(weights[a] * (layer.rlrr_left[a] - starts.T) for a in own)
        if options.right:
            right = starts + sum(weights[a] * (layer.rlrr_right[a] - starts) for a in own)
        return reference.rlrr_weight(layer.get_base_layer().weight, left, right, options.residual)

    assert_merged(model, x, want)
    shift = layers_of(model)["base_model.model.second"].rlrr_shift
    assert torch.allclose(shift["new"], 0.7 * shift["one"] - 0.4 * shift["two"])


@pytest.mark.parametrize("combination_type", ["linear", "cat"])
def test_norms_add_up_around_one(combination_type: str) -> None:
    adapters = {n: make_config("rlrr", init_weights=False, target_modules=NORMS) for n in ("one", "two")}
    model, x = combined(adapters, [0.7, -0.4], combination_type)
    norm = layers_of(model)["base_model.model.norm"]
    assert isinstance(norm, RLRRNorm)
    scale = 1 + 0.7 * (norm.rlrr_right["one"] - 1) - 0.4 * (norm.rlrr_right["two"] - 1)
    bias = norm.base_layer.bias * scale[0] + 0.7 * norm.rlrr_shift["one"] - 0.4 * norm.rlrr_shift["two"]
    output = model(x)
    model.merge_adapter()
    assert torch.allclose(norm.base_layer.weight, torch.ones(7).double() * scale[0])
    assert torch.allclose(norm.base_layer.bias, bias)
    assert torch.allclose(model(x), output)


def test_what_weight_minus_one_means_for_rescalings() -> None:
    """Factors: both are negated, so the change stays. Changes: the negated one, which is not the inverse."""
    config = make_config("rlrr", init_weights=False, target_modules=["first"])
    model, _ = combined({"one": config}, [-1.0], "linear")
    model.add_weighted_adapter(["one"], [-1.0], "negated", "cat")
    layer = layers_of(model)["base_model.model.first"]
    assert torch.allclose(change(layer, "new"), change(layer, "one"))
    assert torch.equal(layer.rlrr_shift["new"], -layer.rlrr_shift["one"])
    assert torch.allclose(change(layer, "negated"), -change(layer, "one"))
    both = layer.adapt_matrix(layer.adapt_matrix(layer.weight, "one"), "negated")
    gain = layer.rlrr_left["one"] @ layer.rlrr_right["one"]
    assert torch.allclose(both, (1 - gain.T**2) * layer.weight)


def rotation(layer: GOFTLayer, adapter: str) -> torch.Tensor:
    """R of an adapter as a dense matrix, the identity where the layer lacks it."""
    width = layer.in_features
    matrix = torch.eye(width, dtype=torch.float64)
    if adapter not in layer.adapter_options:
        return matrix
    options = layer.adapter_options[adapter]
    rotations = layer.goft_block[adapter] if options.quasi else reference.rotation_blocks(layer.goft_theta[adapter])
    if options.freeze:
        rotations = reference.held_blocks(rotations, options.freeze)
    permute = torch.eye(width, dtype=torch.float64)[(torch.arange(width) * golden_step(width)) % width]
    change = torch.eye(width, dtype=torch.float64)
    for tree in rotations.view(options.num_trees, width - 1, 2, 2):
        matrix = matrix @ change.T @ reference.givens_matrix(tree, width) @ change
        change = permute @ change
    return matrix


def golden_step(width: int) -> int:
    """The number coprime to the width that is nearest to width / golden ratio, for the widths in these tests."""
    return {7: 4, 10: 7}[width]


COMPOSE = [
    ("goft", "goft"),
    ("goft", "goft-3-trees", "goft"),
    ("goft-output-scale",) * 2,
    ("qgoft", "qgoft", "qgoft"),
    ("qgoft-output-scale",) * 2,
    ("qgoft-angle-frozen",) * 2,
    ("qgoft",),
]


@pytest.mark.parametrize("signs", [[1, 1, 1], [1, -1, 1], [-1, 1, -1]])
@pytest.mark.parametrize("names", COMPOSE, ids="+".join)
def test_compose_is_the_product_of_rotations_and_inverses(names: tuple[str, ...], signs: list[int]) -> None:
    adapters = configs(*names)
    model, x = combined(adapters, signs[: len(names)])

    def want(layer: Any) -> torch.Tensor:
        matrix = layer.weight.T
        for adapter, sign in zip(adapters, signs, strict=False):
            matrix = torch.linalg.matrix_power(rotation(layer, adapter), sign) @ matrix
            if adapter in layer.goft_scale:
                matrix = matrix * layer.goft_scale[adapter] ** sign
        return matrix.T

    assert_merged(model, x, want)


@pytest.mark.parametrize("name", ["goft", "goft-3-trees", "goft-output-scale", "qgoft", "qgoft-norm-frozen"])
@pytest.mark.parametrize("model_name", MODELS)
def test_compose_is_what_several_active_adapters_do(name: str, model_name: str) -> None:
    model, x = combined(configs(name, name), [1, 1], "compose", model_name)
    together = model(x)
    model.base_model.set_adapter(["one", "two"])
    assert reference.relative_error(together, model(x)) < 1e-12
    model.base_model.set_adapter(["two", "one"])
    assert reference.relative_error(together, model(x)) > 1e-3


@pytest.mark.parametrize("name", ["goft-3-trees", "qgoft", "qgoft-output-scale"])
def test_what_was_composed_can_be_taken_back(name: str) -> None:
    """A combination of combinations: (b a)^-1, then a, then b is nothing at all; and is saved as such."""
    model, x = combined(configs(name, name), [1, 1])
    model.add_weighted_adapter(["new", "one", "two"], [-1, 1, 1], "nothing")
    model.set_adapter("nothing")
    with model.disable_adapter():
        base = model(x)
    assert reference.relative_error(model(x), base) < 1e-9
    assert max(orthogonality_defect(model).values()) < 1e-9


def test_a_composition_of_rotations_is_orthogonal_and_its_penalty_that_of_its_blocks() -> None:
    model, _ = combined(configs("goft", "goft"), [1, -1])
    assert max(orthogonality_defect(model).values()) < 1e-13
    model, _ = combined(configs("qgoft", "qgoft"), [1, 1])
    blocks = {n: p for n, p in model.named_parameters() if "goft_block" in n}
    squares = {n: (p[..., 0] * p[..., 1]).sum(-1).square().sum() for n, p in blocks.items()}
    want = 1e-3 * sum(value for n, value in squares.items() if n.endswith((".one", ".two")))
    assert torch.allclose(regularization_loss(model), want)


@pytest.mark.parametrize("weights", [[0.3, 0.7], [1.0, -1.0], [-1.0, 0.0]])
@pytest.mark.parametrize("name", ["goft", "goft-3-trees", "goft-input-scale", "goft-output-scale"])
def test_geodesic_adds_up_angles(name: str, weights: list[float]) -> None:
    model, x = combined(configs(name, name), weights, "geodesic")
    for layer in layers_of(model).values():
        own = [(a, w) for a, w in zip(("one", "two"), weights, strict=True) if a in layer.adapter_options]
        assert torch.allclose(layer.goft_theta["new"], sum(w * layer.goft_theta[a] for a, w in own))
        if layer.goft_scale:
            logs = [w * layer.goft_scale[a].log() for a, w in own]
            assert torch.allclose(layer.goft_scale["new"].log(), sum(logs), atol=1e-12)
    output = model(x)
    model.merge_adapter()
    assert reference.relative_error(model(x), output) < 1e-10


@pytest.mark.parametrize("weights", [[0.3, 0.7], [1.0, -1.0], [-1.0, 0.5]])
@pytest.mark.parametrize("name", ["qgoft", "qgoft-composed", "qgoft-angle-frozen"])
def test_geodesic_adds_up_polar_forms(name: str, weights: list[float]) -> None:
    model, _ = combined(configs(name, name), weights, "geodesic")
    for layer in layers_of(model).values():
        angle, stretch = 0.0, 0.0
        for adapter, weight in zip(("one", "two"), weights, strict=True):
            if adapter in layer.adapter_options:
                u, values, vh = torch.linalg.svd(layer.rotations(adapter))
                angle = angle + weight * torch.atan2((u @ vh)[:, 1, 0], (u @ vh)[:, 0, 0])
                stretch = stretch + weight * (vh.mT * values.log()[:, None]) @ vh
        want = reference.rotation_blocks(angle) @ torch.linalg.matrix_exp(stretch)
        assert reference.relative_error(layer.rotations("new"), want) < 1e-12


def test_a_geodesic_mean_of_equal_adapters_is_that_adapter() -> None:
    model, _ = combined(configs("qgoft"), [1.0], "geodesic")
    model.add_weighted_adapter(["one", "new", "one"], [0.2, 0.3, 0.5], "mean", "geodesic")
    layer = layers_of(model)["base_model.model.first"]
    assert torch.allclose(layer.goft_block["mean"], layer.goft_block["one"])


SAVED = [
    ("linear", ("rlrr", "rlrr"), [0.5, 0.5]),
    ("cat", ("rlrr", "rlrr-r3"), [0.5, -2.0]),
    ("cat", ("aoft", "aoft-no-scale"), [0.5, -2.0]),
    ("compose", ("qgoft", "qgoft"), [1, -1]),
    ("geodesic", ("goft-3-trees", "goft-3-trees"), [0.5, 0.5]),
]


@pytest.mark.parametrize(("combination_type", "names", "weights"), SAVED)
def test_a_combination_is_saved_and_comes_back(
    combination_type: str, names: tuple[str, ...], weights: list[float], tmp_path: Path
) -> None:
    model, x = combined(configs(*names), weights, combination_type)
    want = model(x)
    model.save_pretrained(tmp_path, selected_adapters=["new"])
    base, _ = cases.model_and_input("linear", torch.float64)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "new", autocast_adapter_dtype=False).eval()
    assert len(layers_of(again)) == 2
    assert torch.allclose(again(x), want)


@pytest.mark.parametrize(("combination_type", "names", "weights"), SAVED)
def test_a_combination_can_be_trained_and_nothing_else_moves(
    combination_type: str, names: tuple[str, ...], weights: list[float]
) -> None:
    model, x = combined(configs(*names), weights, combination_type)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [name for name in before if name.endswith(".new")]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in trained), name


@pytest.mark.parametrize("name", ["goft", "qgoft", "rlrr", "aoft"])
def test_the_active_adapter_stays_as_it_was(name: str) -> None:
    base, x = cases.model_and_input("linear")
    model = peft.get_peft_model(base, make_config(name, init_weights=False, target_modules=["first"]), "one")
    model.add_adapter("two", make_config(name, target_modules=["second"], inference_mode=True))
    output = model(x)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    model.add_weighted_adapter(["two", "one"], [1, 1], "new")
    assert model.active_adapters == ["one"]
    assert {n: p.requires_grad for n, p in model.named_parameters() if ".new" not in n} == flags
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".new" in n)
    assert torch.equal(model(x), output)
    model.delete_adapter("new")
    assert torch.equal(model(x), output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["goft", "qgoft", "rlrr", "aoft"])
def test_the_result_has_the_dtype_of_the_adapters(name: str, dtype: torch.dtype) -> None:
    base, _ = cases.model_and_input("linear", dtype)
    config = make_config(name, init_weights=False, target_modules=["first"])
    model = peft.get_peft_model(base, config, "one", autocast_adapter_dtype=False)
    model.add_weighted_adapter(["one"], [1.0], "new")
    values = {n: p for n, p in model.named_parameters() if n.endswith((".one", ".new"))}
    for key, value in values.items():
        assert value.dtype == dtype
        assert torch.equal(value, values[key.replace(".new", ".one")])


@pytest.mark.parametrize(
    ("first", "second", "layers"),
    [
        ({"target_modules": ["first"]}, {"target_modules": ["second", "head"]}, {"first", "second", "head"}),
        ({"target_modules": "first|head"}, {"target_modules": ["second"]}, {"first", "second", "head"}),
        (
            {"target_modules": ["first"]},
            {"target_modules": ["second", "head"], "exclude_modules": ["head"]},
            {"first", "second"},
        ),
        ({"target_modules": "first"}, {"target_modules": "first"}, {"first"}),
    ],
)
def test_layers_are_the_union(first: dict[str, Any], second: dict[str, Any], layers: set[str], tmp_path: Path) -> None:
    model, _ = combined({"one": GOFTConfig(**first), "two": GOFTConfig(**second)}, [1, 1])
    assert {n.rpartition(".")[2] for n, m in layers_of(model).items() if "new" in m.adapter_options} == layers
    model.save_pretrained(tmp_path, selected_adapters=["new"])
    again = peft.PeftModel.from_pretrained(cases.model_and_input("linear")[0], tmp_path / "new")
    assert {n.rpartition(".")[2] for n in layers_of(again)} == layers


def test_heads_are_not_combined_but_chosen(tmp_path: Path) -> None:
    base, x = cases.model_and_input("linear")
    kwargs = {"init_weights": False, "target_modules": ["first"], "modules_to_save": ["head"]}
    model = peft.get_peft_model(base, make_config("rlrr", **kwargs), "one").eval()
    model.add_adapter("two", make_config("rlrr", **kwargs))
    model.add_adapter("three", make_config("rlrr", init_weights=False, target_modules=["second"]))
    head = model.base_model.model.head.modules_to_save
    with torch.no_grad():
        head["two"].weight.add_(1)
    with pytest.raises(InputError, match=r"'one' and 'two' each have their own 'head'.*modules_to_save_from"):
        model.add_weighted_adapter(["one", "two"], [1, 1], "new")
    with pytest.raises(InputError, match="modules_to_save_from='three' is not one of adapters: one, two"):
        model.add_weighted_adapter(["one", "two"], [1, 1], "new", modules_to_save_from="three")
    model.add_weighted_adapter(["three", "one"], [1, 1], "one head")
    assert torch.equal(head["one head"].weight, head["one"].weight)
    model.add_weighted_adapter(["one", "two"], [1, 1], "new", modules_to_save_from="two")
    model.set_adapter("new")
    assert torch.equal(head["new"].weight, head["two"].weight)
    assert head["new"].weight.requires_grad
    want = model(x)
    model.save_pretrained(tmp_path, selected_adapters=["new"])
    again = peft.PeftModel.from_pretrained(cases.model_and_input("linear")[0], tmp_path / "new").eval()
    assert torch.allclose(again(x), want)


def goft(**kwargs: Any) -> GOFTConfig:
    return GOFTConfig(**{"target_modules": ["first"], **kwargs})


BAD: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "unknown adapter": (
        goft(),
        goft(),
        {"adapters": ["one", "twoo"]},
        "adapter 'twoo' is not in this model; did you mean two",
    ),
    "no adapter": (goft(), goft(), {"adapters": [], "weights": []}, r"adapters=\[\] is not a list of the names"),
    "a string": (goft(), goft(), {"adapters": "one"}, "adapters='one' is not a list"),
    "taken name": (goft(), goft(), {"adapter_name": "two"}, "adapter_name='two' is taken"),
    "count": (goft(), goft(), {"weights": [1]}, "there are 1 weights for 2 adapters"),
    "infinite": (
        goft(),
        goft(),
        {"weights": [1, float("inf")]},
        "weights: inf, of adapter 'two', is not a finite number",
    ),
    "text": (goft(), goft(), {"weights": [1, "x"]}, "weights: 'x', of adapter 'two', is not a finite number"),
    "type": (
        goft(),
        goft(),
        {"combination_type": "geodesik"},
        r"not one of GOFT's \(compose, geodesic\); did you mean geod",
    ),
    "type of another": (AOFTConfig(r=2, target_modules=["first"]),) * 2
    + ({"combination_type": "linear"}, r"'linear' is not one of AOFT's \(cat\)"),
    "half a rotation": (
        goft(),
        goft(),
        {"weights": [1, 0.5]},
        "0.5 of 'two' does not go with combination_type 'compose'",
    ),
    "input scale": (goft(scale="input"), goft(scale="input"), {}, "'one' has scale='input'.*'geodesic' is possible"),
    "fields": (goft(quasi=True), goft(), {}, "the same quasi: 'one' has quasi=True and 'two' has quasi=False"),
    "trees": (goft(), goft(num_trees=2), {"combination_type": "geodesic"}, "the same num_trees: .*1 .*num_trees=2"),
    "norm frozen inverse": (goft(quasi=True, freeze="norm"),) * 2 + ({"weights": [1, -1]}, "'two' has freeze='norm'"),
    "norm frozen mean": (goft(quasi=True, freeze="norm"),) * 2
    + ({"combination_type": "geodesic"}, "freeze='norm' of adapter 'one' asks for"),
    "rank": (
        RLRRConfig(r=4, target_modules=["first"]),
        RLRRConfig(r=4, target_modules=["first"]),
        {"combination_type": "cat"},
        "r=8 is out of range for layer 'first'",
    ),
    "rank differs": (
        RLRRConfig(target_modules=["first"]),
        RLRRConfig(r=2, target_modules=["first"]),
        {},
        "'linear' needs adapters with the same r: 'one' has r=1 and 'two' has r=2",
    ),
    "bias": (goft(bias="all"), goft(), {}, "adapter 'one' has bias='all'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_the_model_stays_as_it_was(case: str) -> None:
    first, second, arguments, message = BAD[case]
    base, _ = cases.model_and_input("linear")
    model = peft.get_peft_model(base, first, adapter_name="one")
    model.add_adapter("two", second)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        model.add_weighted_adapter(
            **{"adapters": ["one", "two"], "weights": [1, 1], "adapter_name": "new", **arguments}
        )
    assert set(model.peft_config) == {"one", "two"}
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("weight", "combination_type", "value", "message"),
    [
        (-1, "compose", 0.0, "in layer 'second' 2 of 6 blocks are singular"),
        (0.5, "geodesic", 0.0, "in layer 'second' 2 of 6 blocks have a determinant that is not positive"),
        (0.5, "geodesic", -1.0, "in layer 'second' 2 of 6 blocks have a determinant that is not positive"),
    ],
)
def test_blocks_that_have_no_such_power(weight: float, combination_type: str, value: float, message: str) -> None:
    base, _ = cases.model_and_input("linear")
    model = peft.get_peft_model(base, goft(quasi=True, target_modules=["first", "second"]), "one")
    layer = layers_of(model)["base_model.model.second"]
    with torch.no_grad():
        layer.goft_block["one"][2:4, 1, 1] = value
    with pytest.raises(InputError, match=f"'one' cannot be combined with weight {weight:g}: {message}"):
        model.add_weighted_adapter(["one"], [weight], "new", combination_type)
    assert not any("new" in name for name in model.state_dict())
    assert not any("new" in layer.adapter_options for layer in layers_of(model).values())


@pytest.mark.parametrize(("weight", "value"), [(-1, 0.0), (0.5, -1.0)])
def test_scales_that_have_no_such_power(weight: float, value: float) -> None:
    base, _ = cases.model_and_input("linear")
    model = peft.get_peft_model(base, goft(scale="output"), "one")
    with torch.no_grad():
        layers_of(model)["base_model.model.first"].goft_scale["one"][3] = value
    with pytest.raises(InputError, match="in layer 'first' 1 of 7 entries of goft_scale have no such power"):
        model.add_weighted_adapter(["one"], [weight], "new", "geodesic")


def test_shifts_alone_add_up_and_layers_without_a_bias_have_none() -> None:
    base = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3, bias=False))
    model = peft.get_peft_model(base, BitFitConfig(target_modules=["0", "1"], init_weights=False), "one")
    model.add_weighted_adapter(["one", "one"], [2, -0.5], "new")
    first, second = layers_of(model).values()
    assert torch.allclose(first.bitfit_shift["new"], 1.5 * first.bitfit_shift["one"])
    assert "new" in second.adapter_options
    assert not second.bitfit_shift


def test_a_method_without_combinations() -> None:
    options = FacTConfig(target_modules=["first"], r=2)
    model = peft.get_peft_model(cases.model_and_input("linear")[0], options, "one")
    with pytest.raises(InputError, match="FacT adapters cannot be combined into one"):
        model.add_weighted_adapter(["one"], [1], "new")
