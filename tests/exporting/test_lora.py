"""A plain LoRA of every method: the same outputs, the best of a rank, loaded without this package."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from orthotune import AOFTConfig, GOFTConfig, InputError, RLRRConfig, export_to_lora, split_fused_projections
from orthotune.exporting import total_error
from orthotune.methods import METHODS
from reference import relative_error
from tuners.cases import ALL, config, is_mergeable, method_of, model_and_input, targets

#: Cases that adapt, by default, linear layers and norms of every block.
DEFAULT = [case for case, _ in ALL if (METHODS[method_of(case)].targets or "").startswith("default")]

#: Cases whose change of a linear layer has exact factors.
EXACT = [
    name for name, kind in ALL if kind == "linear" and name.startswith(("aoft", "fact", "rlrr-multiply", "bitfit"))
]
TOLERANCE = 1e-5  # the factors are float32


def adapted(case: str, kind: str = "linear", **options: Any) -> tuple[PeftModel, nn.Module, torch.Tensor]:
    """A small model with a random adapter and a trained head, the model without, and an input."""
    model, x = model_and_input(kind)
    if kind == "conv2d":
        model.get_submodule("first").dilation = (1, 1)
    plain = copy.deepcopy(model)
    settings = {**targets(case, kind), "modules_to_save": ["head"], "init_weights": False, **options}
    if kind == "linear" and case.startswith(("rlrr", "ssf")):
        settings["target_modules"] = ["first", "second", "norm"]
    peft_model = get_peft_model(model, config(case, **settings)).eval()
    if settings["modules_to_save"]:
        with torch.no_grad():
            peft_model.get_base_model().head.modules_to_save["default"].weight.mul_(2)
    return peft_model, plain, x


def loaded(plain: nn.Module, folder: Path) -> PeftModel:
    """The LoRA on the plain model; a missing key is a warning, so an error here."""
    return PeftModel.from_pretrained(plain, str(folder)).eval()


@pytest.mark.parametrize(("case", "kind"), [(c, k) for c, k in ALL if k != "vit" or c in DEFAULT])
def test_outputs_are_the_same_at_a_tolerance_of_float32(case: str, kind: str, tmp_path: Path) -> None:
    model, plain, x = adapted(case, kind)
    if not is_mergeable(model):
        with pytest.raises(InputError, match=r"cannot be merged into layer '\w+"):
            export_to_lora(model, tmp_path / "lora", tolerance=1e-6)
        return
    errors = export_to_lora(model, tmp_path / "lora", tolerance=1e-6)
    assert total_error(errors) < 2e-6
    assert relative_error(loaded(plain, tmp_path / "lora")(x), model(x)) < TOLERANCE


@pytest.mark.parametrize("case", EXACT)
def test_exact_factors_need_no_rank(case: str, tmp_path: Path) -> None:
    model, plain, x = adapted(case)
    errors = export_to_lora(model, tmp_path / "lora")
    assert total_error(errors) < 1e-6
    assert relative_error(loaded(plain, tmp_path / "lora")(x), model(x)) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "rank"), [({}, 3), ({"learn_scale": False}, 6), ({"learn_scale": False, "r": 4}, 7)]
)
def test_exact_factors_have_the_methods_rank_or_the_layers(options: dict[str, Any], rank: int, tmp_path: Path) -> None:
    """AOFT's r, twice that where the start is subtracted, and no more than the layer's 7."""
    model, _, _ = adapted("aoft", **options)
    assert {error.rank for error in export_to_lora(model, tmp_path / "lora")} == {rank}


@pytest.mark.parametrize("case", ["goft", "qgoft", "rlrr", "aoft"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_lower_rank_is_the_best_of_that_rank(case: str, rank: int, tmp_path: Path) -> None:
    model, plain, _ = adapted(case)
    merged = copy.deepcopy(model).double().merge_and_unload()
    errors = export_to_lora(model, tmp_path / "lora", rank=rank)
    state = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    for error in errors:
        change = merged.get_submodule(error.layer).weight - plain.get_submodule(error.layer).weight
        values = torch.linalg.svdvals(change)
        key = f"base_model.model.{error.layer}"
        product = state[f"{key}.lora_B.weight"].double() @ state[f"{key}.lora_A.weight"].double()
        best = values[rank:].norm().item()  # Eckart and Young
        assert error.rank == rank
        assert torch.linalg.matrix_norm(change - product).item() == pytest.approx(best, rel=1e-5)
        assert error.residual == pytest.approx(best, rel=1e-5)
        assert error.relative == pytest.approx(best / values.norm().item(), rel=1e-5)


@pytest.mark.parametrize("tolerance", [0.05, 0.3, 0.7])
def test_the_tolerance_gives_the_smallest_rank_of_each_layer(tolerance: float, tmp_path: Path) -> None:
    model, plain, x = adapted("qgoft")
    errors = export_to_lora(model, tmp_path / "lora", tolerance=tolerance)
    merged = copy.deepcopy(model).double().merge_and_unload()
    for error in errors:
        change = merged.get_submodule(error.layer).weight - plain.get_submodule(error.layer).weight
        values = torch.linalg.svdvals(change)
        assert error.relative <= tolerance
        assert values[error.rank - 1 :].norm() > tolerance * values.norm()
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    ranks = {error.layer: error.rank for error in errors}
    assert settings["r"] == settings["lora_alpha"] == max(ranks.values())
    assert settings["rank_pattern"] == settings["alpha_pattern"]
    lora = loaded(plain, tmp_path / "lora")
    assert {name: lora.get_submodule(f"base_model.model.{name}").r["default"] for name in ranks} == ranks
    assert lora(x).isfinite().all()


def test_a_rank_above_the_layers_own_is_the_layers_own(tmp_path: Path) -> None:
    model, plain, x = adapted("goft")
    assert {e.rank for e in export_to_lora(model, tmp_path / "lora", rank=100)} == {7}
    assert relative_error(loaded(plain, tmp_path / "lora")(x), model(x)) < TOLERANCE


def test_an_adapter_that_changes_nothing_is_written_too(tmp_path: Path) -> None:
    model, plain, x = adapted("goft", init_weights=True)
    assert [(e.rank, e.relative) for e in export_to_lora(model, tmp_path / "lora", tolerance=0.1)] == [(1, 0), (1, 0)]
    assert relative_error(loaded(plain, tmp_path / "lora")(x), model(x)) < TOLERANCE


MODEL = {"img_size": 16, "num_classes": 3, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def vit() -> nn.Module:
    """A small timm vision transformer, the same one every time."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **MODEL).eval()


@pytest.mark.parametrize("parts", [("q",), ("q", "v"), ("q", "k", "v")])
@pytest.mark.parametrize(("cls", "options"), [(AOFTConfig, {"r": 3}), (GOFTConfig, {}), (LoraConfig, {"r": 2})])
def test_parts_of_a_fused_layer_are_one_lora_on_the_whole(
    cls: type, options: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    random = {"init_lora_weights": False} if cls is LoraConfig else {"init_weights": False}
    settings = cls(target_modules=[*parts, "fc1"], modules_to_save=["head"], **random, **options)
    base = vit()
    split_fused_projections(base, settings)
    model = get_peft_model(base, settings).eval()
    exact = cls is not GOFTConfig
    errors = export_to_lora(model, tmp_path / "lora", tolerance=None if exact else 1e-6)
    assert {e.layer for e in errors} == {f"blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "mlp.fc1")}
    if exact:
        assert {e.rank for e in errors if e.layer.endswith("qkv")} == {options["r"] * len(parts)}
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(loaded(vit(), tmp_path / "lora")(x), model(x)) < TOLERANCE


def test_a_fused_conv1d_comes_back_whole(tmp_path: Path) -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.c_attn = Conv1D(15, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c_attn(x)

    model = get_peft_model(Fused(), AOFTConfig(r=2, target_modules=["q", "v"], init_weights=False))
    export_to_lora(model, tmp_path / "lora")
    x = torch.randn(3, 5)
    assert relative_error(loaded(Fused(), tmp_path / "lora")(x), model(x)) < TOLERANCE


def rlrr_with_norms() -> PeftModel:
    targets = ["q", "k", "v", "fc2", "norm1", "norm"]
    return get_peft_model(
        vit(), RLRRConfig(target_modules=targets, modules_to_save=["head"], init_weights=False)
    ).eval()


@pytest.mark.slow
def test_plain_peft_alone_gives_the_same_logits(tmp_path: Path) -> None:
    """RLRR with norms, shifts and a head; the other process has not seen this package."""
    model = rlrr_with_norms()
    export_to_lora(model, tmp_path / "lora", tolerance=1e-6)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    script = f"""
import json, sys, timm, torch
from peft import PeftModel
torch.manual_seed(0)
model = PeftModel.from_pretrained(timm.create_model("vit_tiny_patch16_224", **{MODEL}), r"{tmp_path / "lora"}").eval()
assert not any(name.split(".")[0] == "orthotune" for name in sys.modules)
x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
merged = model(x).tolist(), model.merge_and_unload()(x).tolist()
print(json.dumps(merged))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONWARNINGS": "error::UserWarning"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if "p018" in p)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for logits in json.loads(done.stdout.splitlines()[-1]):
        assert relative_error(torch.tensor(logits), model(x)) < TOLERANCE


def test_what_a_lora_cannot_hold_is_refused_or_dropped_when_asked(tmp_path: Path) -> None:
    model = rlrr_with_norms()
    with pytest.raises(
        InputError, match=r"shifts of biases \(blocks\.0.*norms \(blocks\.0\.norm1.*whole modules \(head"
    ):
        export_to_lora(model, tmp_path / "lora", rank=4, extras="refuse")
    assert not (tmp_path / "lora").exists()
    export_to_lora(model, tmp_path / "lora", rank=4, extras="drop")
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] is None
    assert settings["lora_bias"] is False
    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {key.rpartition(".lora_")[2] for key in keys} == {"A.weight", "B.weight"}
    loaded(vit(), tmp_path / "lora")


def test_the_files_are_what_vllm_reads(tmp_path: Path) -> None:
    """Its loader (vllm/lora/peft_helper.py, utils.py) takes these fields and keys, and scales by lora_alpha / r."""
    model, _, _ = adapted("goft", modules_to_save=None)
    export_to_lora(model, tmp_path / "lora", rank=2, extras="refuse")
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert settings["r"] == settings["lora_alpha"] == 2
    assert sorted(settings["target_modules"]) == ["first", "second"]
    assert settings["bias"] == "none"
    unsupported = ("modules_to_save", "use_dora", "use_rslora", "lora_bias", "rank_pattern", "alpha_pattern")
    assert not any(settings[key] for key in unsupported)
    state = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert state.keys() == {f"base_model.model.{n}.lora_{f}.weight" for n in ("first", "second") for f in "AB"}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_a_component_of_diffusers(tmp_path: Path) -> None:
    """Keys start with the component; the config is in the header (diffusers/loaders/lora_base.py)."""
    model, _, _ = adapted("goft", modules_to_save=None)
    export_to_lora(model, tmp_path / "lora", rank=2, component="unet")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert [path.name for path in (tmp_path / "lora").iterdir()] == [file.name]
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == {f"unet.{n}.lora_{f}.weight" for n in ("first", "second") for f in "AB"}
        metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert metadata["unet.r"] == metadata["unet.lora_alpha"] == 2
    with pytest.raises(InputError, match="shifts of biases"):
        export_to_lora(adapted("rlrr")[0], tmp_path / "other", rank=2, component="unet")


class Nested(nn.Module):
    """Layer names that end in one another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.inner = nn.ModuleDict({"layer": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "my_norm": nn.LayerNorm(4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.layer(x))
        for module in self.inner.values():
            x = module(x)
        return x


def test_exactly_the_adapted_layers_are_adapted_whatever_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = Nested()
    adapter = RLRRConfig(target_modules="layer|norm", init_weights=False)
    model = get_peft_model(copy.deepcopy(plain), adapter).eval()
    export_to_lora(model, tmp_path / "lora", rank=4)
    lora, x = loaded(plain, tmp_path / "lora"), torch.randn(5, 4)
    layers = {name.rpartition(".lora_A")[0] for name, _ in lora.named_parameters() if ".lora_A" in name}
    assert layers == {"base_model.model.layer"}
    assert relative_error(lora(x), model(x)) < TOLERANCE


def test_one_of_several_adapters(tmp_path: Path) -> None:
    model, plain, x = adapted("aoft")
    model.add_adapter("other", config("aoft", target_modules=["second"], r=2, init_weights=False))
    model.set_adapter("other")
    errors = export_to_lora(model, tmp_path / "lora", "other")
    assert [(error.layer, error.rank) for error in errors] == [("second", 2)]
    assert relative_error(loaded(plain, tmp_path / "lora")(x), model(x)) < TOLERANCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2, "tolerance": 0.1}, "rank=2 and tolerance=0.1 exclude each other"),
        ({"rank": 0}, "rank=0 is out of range"),
        ({"rank": 1.5}, "rank=1.5 is out of range"),
        ({"tolerance": 1.0}, "tolerance=1.0 is out of range"),
        ({"tolerance": float("nan")}, "tolerance=nan is out of range"),
        ({"extras": "some"}, "extras='some' is not one of"),
        ({"adapter_name": "none"}, "no adapter 'none'; it has: default"),
        ({}, "layer 'first' has no exact low-rank factors: give a rank"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, _, _ = adapted("goft")
    with pytest.raises(InputError, match=message):
        export_to_lora(model, tmp_path / "lora", **arguments)
    assert not list(tmp_path.iterdir())


def test_what_no_lora_can_stand_for_is_named(tmp_path: Path) -> None:
    def refused(model: nn.Module, message: str) -> None:
        with pytest.raises(InputError, match=message):
            export_to_lora(model, tmp_path / "lora", rank=2)

    model, _, _ = adapted("goft", "conv2d")
    model.get_base_model().first.get_base_layer().dilation = (1, 2)
    refused(model, r"layer 'first' is a convolution with dilation=\(1, 2\)")
    model, _, _ = adapted("goft")
    model.merge_adapter()
    refused(model, "layer 'first' has adapters merged into it")
    model, _, _ = adapted("goft", bias="all")
    refused(model, "trained with bias='all'")
    model, _, _ = adapted("goft")
    with torch.no_grad():
        model.get_base_model().second.goft_theta["default"][0] = float("nan")
    refused(model, "layer 'second' contains NaN")
    from peft import IA3Config

    other = get_peft_model(model_and_input("linear")[0], IA3Config(target_modules=["first"], feedforward_modules=[]))
    refused(other, r"layer 'first' has an adapter of type peft\.tuners\.ia3")
    (tmp_path / "lora").mkdir()
    refused(adapted("goft")[0], "already exists")
