"""Named sets resolve to exactly the modules they mean, on every family, and adapters on them train, merge and load."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import peft
import pytest
import timm
import torch
from torch import nn

import orthotune
from backbones.families import FAMILIES, Family, build, run, shared
from orthotune import GOFTConfig, InputError, RLRRConfig
from orthotune.targets.kinds import head_names, module_kinds
from orthotune.targets.resolve import target_modules
from orthotune.targets.sets import SETS
from orthotune.tuners.fused import is_targeted, part_names
from tuners.cases import config

pytestmark = pytest.mark.filterwarnings("ignore:RLRR. .* have no bias")


def matched(model: nn.Module, targets: list[str] | str) -> set[str]:
    """The modules, and parts of fused ones, that PEFT matches; placeholders left out."""
    options = GOFTConfig(target_modules=targets)
    names = {n for n, m in model.named_modules() if n and not isinstance(m, nn.Identity)} | part_names(model)
    return {name for name in names if is_targeted(options, name)}


def expected(family: Family, kinds: frozenset[str]) -> tuple[set[str], set[str]]:
    """(the names in the family's block, those outside every block) of these kinds."""
    inside = {family.block + name for kind in kinds for name in family.kinds.get(kind, "").split()}
    return inside, {name for kind in kinds for name in family.outside.get(kind, "").split()}


@pytest.mark.parametrize("targets", [*SETS, "attention+norms"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_set_is_exactly_its_modules(name: str, targets: str) -> None:
    family, model = FAMILIES[name], shared(name)
    kinds = frozenset().union(*(SETS[part] for part in targets.split("+")))
    if targets == "default" and not any(expected(family, kinds)):
        kinds = SETS["convs"]
    if targets == "stem":
        stem = {n for n in expected(family, SETS["convs"])[1] if "downsampl" not in n}
        inside, outside = set[str](), stem
    else:
        inside, outside = expected(family, kinds)
    if not (inside or outside):
        with pytest.raises(InputError, match=f"no module of {type(model).__name__} belongs to the target set"):
            target_modules(model, targets)
        return
    found = matched(model, target_modules(model, targets))
    assert {n for n in found if n.startswith(family.block)} == inside
    assert {n for n in found if not re.match(family.blocks, n)} == outside


@pytest.mark.parametrize("name", FAMILIES)
def test_everything_but_the_head_and_grouped_convolutions_has_a_kind(name: str) -> None:
    family, model = FAMILIES[name], shared(name)
    heads = head_names(model)
    assert any(head.startswith(family.head) for head in heads) or family.head == "head"
    kinds = module_kinds(model)
    for layer, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
            continue
        has_kind = any(other == layer or other.startswith(f"{layer}.") for other in kinds)
        in_head = any(layer == head or layer.startswith(f"{head}.") for head in heads)
        assert has_kind != (in_head or getattr(module, "groups", 1) > 1), layer


CASES = [
    (name, method, targets)
    for name in FAMILIES
    for method, targets in (("goft", "default"), ("rlrr", "default+norms"), ("aoft", "default"), ("rlrr-r=3", "norms"))
]


@pytest.mark.parametrize(("name", "method", "targets"), CASES)
def test_a_set_trains_merges_and_comes_back(name: str, method: str, targets: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    inputs = family.inputs()
    base = run(family, shared(name), inputs)
    names = matched(shared(name), target_modules(shared(name), targets))
    options = config(method, target_modules=targets, init_weights=False)
    model = peft.get_peft_model(build(name), options).eval()
    adapted = {n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "adapter_options")}
    assert adapted == names
    assert options.target_modules == set(target_modules(shared(name), targets, placeholders=False))
    output = run(family, model, inputs)
    scale = output.abs().max().item()
    assert (output - base).abs().max() > 1e-3 * scale
    output.square().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    reached = [p for p in trained if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(reached) > len(trained) // 2
    assert all(p.grad.isfinite().all() for p in reached)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        model.save_pretrained(tmp_path)
        saved = peft.PeftConfig.from_pretrained(tmp_path)
        assert set(saved.target_modules) == options.target_modules
        back = peft.PeftModel.from_pretrained(build(name), tmp_path).eval()
    torch.testing.assert_close(run(family, back, inputs), output)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(run(family, merged, inputs), output, rtol=1e-3, atol=1e-4 * scale)


LAYERED = [
    name for name in FAMILIES if not name.startswith(("timm-resnet", "timm-convnext", "convnext", "timm-swin", "swin"))
]


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("targets", ["default", "default+norms"])
def test_layers_to_transform_takes_the_set_in_these_blocks_only(name: str, targets: str) -> None:
    family = FAMILIES[name]
    whole = matched(shared(name), target_modules(shared(name), targets))
    options = config("rlrr", target_modules=targets, layers_to_transform=[1])
    model = peft.get_peft_model(build(name), options)
    adapted = {n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "adapter_options")}
    assert adapted == {n for n in whole if re.match(family.blocks.replace(r"\d+", "1"), n)}
    assert adapted
    assert options.layers_to_transform is None


def test_layers_are_counted_in_the_list_that_layers_pattern_names() -> None:
    names = target_modules(build("timm-swin"), "out", layers=1, layers_pattern="blocks")
    assert names == ["1.attn.proj"]
    assert target_modules(build("timm-swin"), "out", layers=[0]) == ["0.blocks.0.attn.proj"]
    with pytest.raises(InputError, match=r"there is no layer 7 \(indices of this model: 0 to 1\)"):
        target_modules(build("timm-vit"), "qv", layers=[0, 7])


@pytest.mark.parametrize(
    ("name", "targets", "names"),
    [
        ("timm-vit", "qv", ["q", "v"]),
        ("timm-vit", "attention", ["attn.proj", "k", "q", "v"]),
        ("timm-vit", "out", ["attn.proj"]),
        ("timm-vit", "mlp-in+mlp-out", ["fc1", "fc2"]),
        ("timm-vit", "default+norms", ["attn.proj", "fc1", "fc2", "k", "norm", "norm1", "norm2", "q", "v"]),
        ("bert", "mlp-out", ["0.output.dense", "1.output.dense"]),
        ("llama", "attention", ["k_proj", "o_proj", "q_proj", "v_proj"]),
    ],
)
def test_names_are_the_shortest_that_fit(name: str, targets: str, names: list[str]) -> None:
    assert target_modules(shared(name), targets, placeholders=False) == names


def test_names_for_other_methods_match_no_placeholder() -> None:
    model = shared("timm-vit")
    assert isinstance(model.get_submodule("patch_embed.norm"), nn.Identity)
    options = GOFTConfig(target_modules=target_modules(model, "norms"))
    assert {name for name, _ in model.named_modules() if is_targeted(options, name)} == {
        *(f"blocks.{block}.norm{i}" for block in (0, 1) for i in (1, 2)),
        "norm",
    }


def test_names_that_no_ending_tells_apart_become_an_expression() -> None:
    model = build("timm-swin")
    targets = target_modules(model, "norms", exclude=["patch_embed.norm", "norm1", "norm2"])
    assert isinstance(targets, str)
    assert matched(model, targets) == {"layers.1.downsample.norm", "norm"}
    adapted = peft.get_peft_model(model, RLRRConfig(target_modules=targets))
    assert len(adapted.peft_config["default"].target_modules.split("|")) == 2


def test_modules_left_out_stay_out() -> None:
    options = RLRRConfig(target_modules="default", exclude_modules=["attn.proj", "qkv.q"], modules_to_save=["blocks.0"])
    model = peft.get_peft_model(build("timm-vit"), options)
    adapted = {n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "adapter_options")}
    assert adapted == {f"blocks.1.{n}" for n in ("attn.qkv.k", "attn.qkv.v", "mlp.fc1", "mlp.fc2")}


def test_a_second_adapter_takes_a_set_of_its_own() -> None:
    model = peft.get_peft_model(build("timm-vit"), GOFTConfig(target_modules="qv"))
    model.add_adapter("other", GOFTConfig(target_modules="attention"))
    assert model.peft_config["other"].target_modules == {"attn.proj", "k", "q", "v"}
    assert target_modules(model, "attention") == ["attn.proj", "k", "q", "v"]


def test_a_head_of_several_layers_is_trained_whole_and_merges() -> None:
    options = GOFTConfig(target_modules="qv", init_weights=False, modules_to_save=["classifier"])
    model = peft.get_peft_model(build("roberta"), options).eval()
    inputs = FAMILIES["roberta"].inputs()
    output = run(FAMILIES["roberta"], model, inputs)
    merged = model.merge_and_unload()
    assert type(merged.classifier).__name__ == "RobertaClassificationHead"
    torch.testing.assert_close(run(FAMILIES["roberta"], merged, inputs), output, rtol=1e-4, atol=1e-5)


def test_all_linear_alone_keeps_pefts_meaning() -> None:
    model = peft.get_peft_model(build("timm-vit"), GOFTConfig(target_modules="all-linear"))
    assert "head" in model.peft_config["default"].target_modules
    assert "head" not in target_modules(build("timm-vit"), "all-linear")


def test_other_methods_of_peft_take_the_names() -> None:
    model = build("timm-vit")
    options = peft.LoraConfig(target_modules=orthotune.target_modules(model, "qv"))
    assert orthotune.split_fused_projections(model, options) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    adapted = peft.get_peft_model(model, options)
    assert sum(n.endswith("lora_A.default") for n, _ in adapted.named_modules()) == 4


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("default+normes", "'normes' in target_modules='default\\+normes' is no named set; did you mean 'norms'"),
        ("attentoin+norms", "did you mean 'attention'"),
    ],
)
def test_an_unknown_set_among_known_ones_is_named(targets: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RLRRConfig(target_modules=targets)
    with pytest.raises(InputError, match=message):
        target_modules(build("timm-vit"), targets)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        (
            "swinv2_tiny_window8_256",
            {"layers.0.blocks.0.attn.cpb_mlp.0": "linear", "layers.0.blocks.0.mlp.fc1": "mlp-in"},
        ),
        (
            "vit_base_patch16_siglip_224",
            {"attn_pool.q": "linear", "attn_pool.proj": "linear", "attn_pool.mlp.fc1": "linear"},
        ),
        ("vit_giant_patch14_dinov2", {"blocks.0.mlp.fc1": "mlp-in", "blocks.0.mlp.fc2": "mlp-out"}),
        ("mixer_s32_224", {"blocks.0.mlp_tokens.fc1": "mlp-in", "blocks.0.mlp_channels.fc2": "mlp-out"}),
        ("efficientnet_b0", {"blocks.0.0.conv_pw": "conv", "blocks.1.0.conv_pwl": "conv"}),
    ],
)
def test_further_architectures_of_timm(name: str, kinds: dict[str, str]) -> None:
    with torch.device("meta"):
        found = module_kinds(timm.create_model(name))
    assert {layer: found[layer] for layer in kinds} == {layer: {kind} for layer, kind in kinds.items()}


def test_a_distilled_models_two_heads_belong_to_no_set() -> None:
    with torch.device("meta"):
        model = timm.create_model("deit_tiny_distilled_patch16_224")
    assert head_names(model) == ("head", "head_dist")
    assert not {"head", "head_dist"} & matched(model, target_modules(model, "all-linear"))
