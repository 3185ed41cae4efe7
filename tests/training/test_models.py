"""Target modules, weight files, and applying methods to timm and transformers models."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from orthotune.errors import InputError
from orthotune.fields import adapter_fields, adapter_values
from orthotune.methods import METHODS
from orthotune.models import adapt, build_classifier
from orthotune.models.build import Classifier
from orthotune.targets.sets import SETS
from orthotune.training import fit, merge, predict
from orthotune.training.run import open_run
from training.tiny import MODEL_ARGS, config

TINY = "vit_tiny_patch16_224"


def tiny(seed: int = 0, **changes: object) -> Classifier:
    arguments = {"image_size": 16, "model_args": MODEL_ARGS, "random_weights": True, "seed": seed, **changes}
    return build_classifier(TINY, 3, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", ["default", "qv", "mlp", "attention"])
def test_adapted_layers_are_exactly_those_of_the_set(targets: str) -> None:
    model = adapt(tiny(), "lora", {"target_modules": targets})
    layers = {n.rpartition(".lora_A")[0] for n, _ in model.module.named_parameters() if ".lora_A." in n}
    last = {"q": "attn.qkv.q", "k": "attn.qkv.k", "v": "attn.qkv.v", "out": "attn.proj"}
    names = [last[k] for k in SETS[targets] if k in last]
    names += ["mlp.fc1", "mlp.fc2"] if "mlp-in" in SETS[targets] else []
    assert layers == {f"base_model.model.blocks.{i}.{n}" for i in range(2) for n in names}


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].is_adapter])
def test_an_adapter_starts_as_a_no_op(method: str) -> None:
    classifier = tiny()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    classifier.module.eval()
    before = classifier.module(images)
    model = adapt(classifier, method, {})
    config = model.module.peft_config["default"]
    if not getattr(config, "starts_as_no_op", True):
        pytest.skip("a method that says it does not start as a no-op")
    model.module.eval()
    torch.testing.assert_close(model.logits(images), before, rtol=1e-4, atol=1e-5)


def test_a_model_without_such_modules_says_so() -> None:
    model = build_classifier("resnet10t", 3, random_weights=True, image_size=32)
    with pytest.raises(
        InputError, match=r"no module of ResNet .* the target set 'qv' \(found kinds: conv, norm, stem\)"
    ):
        adapt(model, "goft", {"target_modules": "qv"})


@pytest.mark.parametrize("method", ["goft", "lora"])
@pytest.mark.parametrize(("targets", "names"), [("attention", ["attn.qkv.q", "attn.proj"]), ("mlp", ["mlp.fc1"])])
def test_layers_to_transform_goes_with_a_set(method: str, targets: str, names: list[str]) -> None:
    model = adapt(tiny(), method, {"target_modules": targets, "layers_to_transform": [1]})
    adapted = {n.removeprefix("base_model.model.") for n, m in model.module.named_modules() if hasattr(m, "base_layer")}
    assert {f"blocks.1.{name}" for name in names} <= adapted
    assert not any("blocks.0." in name for name in adapted)


def test_a_module_name_that_matches_nothing_gives_near_names() -> None:
    with pytest.raises(InputError, match=r"fc1"):
        adapt(tiny(), "goft", {"target_modules": ["fc11"]})


def test_rank_out_of_range_is_named() -> None:
    with pytest.raises(InputError, match=r"r=0|r=1000"):
        adapt(tiny(), "rlrr", {"r": 1000})


def test_unknown_names_come_with_near_ones() -> None:
    with pytest.raises(InputError, match=r"model 'vit_tiny_patch16_225' is neither.*did you mean vit_tiny_patch16_224"):
        build_classifier("vit_tiny_patch16_225", 3)
    with pytest.raises(InputError, match="'init_weigths' is unknown for method 'goft'; did you mean init_weights"):
        adapter_values("goft", {"init_weigths": True})


@pytest.mark.parametrize(
    ("method", "field", "value", "expected"),
    [
        ("rlrr", "r", "many", "an integer"),
        ("rlrr", "shift", "perhaps", "true or false"),
        ("goft", "scale", "both", "'output', 'input' or null"),
        ("lora", "r", 1.5, "an integer"),
    ],
)
def test_a_value_of_another_type_is_refused(method: str, field: str, value: object, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        adapter_values(method, {field: value})
    assert str(caught.value) == f"--adapter.{field} is {value!r}, which is not {expected}"


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].is_adapter])
def test_every_default_passes_its_own_check(method: str) -> None:
    fields = adapter_fields(method)
    assert "target_modules" in fields
    values = {k: default for k, (_, default, _) in fields.items() if default is None or isinstance(default, int | str)}
    assert values.items() <= adapter_values(method, values).items()


def save(tmp_path: Path, module: torch.nn.Module, **changes: torch.Tensor) -> str:
    file = tmp_path / "weights.safetensors"
    save_file({**module.state_dict(), **changes}, file)
    return str(file)


def test_weights_file_is_loaded_but_for_the_head(tmp_path: Path) -> None:
    source = timm.create_model(TINY, img_size=16, num_classes=7, **MODEL_ARGS)
    file = save(tmp_path, source)
    model = tiny(weights=file, random_weights=False).module.state_dict()
    for name, tensor in source.state_dict().items():
        assert name.startswith("head") or torch.equal(model[name], tensor)
    assert model["head.weight"].shape == (3, 32)


@pytest.mark.parametrize("wrapped", [False, True])
def test_torch_files_are_read(wrapped: bool, tmp_path: Path) -> None:
    source = timm.create_model(TINY, img_size=16, num_classes=7, **MODEL_ARGS)
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "w.pth")
    model = tiny(weights=str(tmp_path / "w.pth"), random_weights=False)
    assert torch.equal(model.module.get_parameter("norm.weight"), source.norm.weight)


def test_weights_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    file = save(tmp_path, timm.create_model(TINY, img_size=32, num_classes=7, **MODEL_ARGS))
    assert tiny(weights=file, random_weights=False).module.get_parameter("pos_embed").shape == (1, 17, 32)


def test_weights_of_another_architecture_name_what_differs(tmp_path: Path) -> None:
    file = save(tmp_path, timm.create_model(TINY, img_size=16, num_classes=7, **{**MODEL_ARGS, "depth": 1}))
    with pytest.raises(InputError, match=r"12 missing \(blocks\.1\."):
        tiny(weights=file, random_weights=False)
    file = save(tmp_path, timm.create_model(TINY, img_size=16, num_classes=7, **{**MODEL_ARGS, "mlp_ratio": 2}))
    with pytest.raises(InputError, match=r"of another shape \(blocks\.0\.mlp\.fc1\.\w+ is \(64"):
        tiny(weights=file, random_weights=False)


def test_nan_in_weights_is_named(tmp_path: Path) -> None:
    source = timm.create_model(TINY, img_size=16, num_classes=7, **MODEL_ARGS)
    file = save(tmp_path, source, **{"blocks.1.mlp.fc2.weight": torch.full((32, 128), float("nan"))})
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.fc2\.weight contains NaN"):
        tiny(weights=file, random_weights=False)


@pytest.mark.parametrize("content", [b"", b"junk"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_that_is_no_weights_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"weights file '.*{name}' cannot be read"):
        tiny(weights=str(tmp_path / name), random_weights=False)


def test_an_image_size_that_does_not_suit_is_refused() -> None:
    with pytest.raises(InputError, match="18 is not a multiple of the patch size 4"):
        tiny(image_size=18)


@pytest.fixture(scope="module")
def transformers_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved transformers ViT with its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    out = tmp_path_factory.mktemp("hf") / "vit"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=5, **sizes)).save_pretrained(out)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(out)
    return out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [None, 24])
def test_transformers_models_train_and_merge(
    method: str, size: int | None, transformers_vit: Path, digits: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageClassification

    changes = {"model": str(transformers_vit), "random_weights": False, "model_args": {}, "image_size": size}
    metrics = fit(config(digits, tmp_path / "run", method, epochs=1, **changes), quiet=True)
    assert metrics.preprocessing["mean"] == (0.4, 0.4, 0.4)
    assert metrics.preprocessing["size"] == size or 16
    assert predict(tmp_path / "run", [digits / "test"], device="cpu", quiet=True)
    if open_run(tmp_path / "run").model.merge_obstacle():
        return
    merge(tmp_path / "run", tmp_path / "merged")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert model.config.id2label == {0: "digit0", 1: "digit1", 2: "digit2"}
