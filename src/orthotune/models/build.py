"""Building an image classifier by name: timm, or transformers (hub id or local directory)."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.methods import near
from orthotune.models.weights import check_finite, load_backbone, load_jax, read_state_dict
from orthotune.targets.kinds import in_modules


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the model: the size in pixels, the resampling, mean and std per channel.

    ``resize="squash"`` resizes to size x size; ``"crop"`` resizes the short side to size / crop_pct and cuts
    the centre.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize: Literal["squash", "crop"] = "squash"
    crop_pct: float = 0.875

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """From the dict that ``dataclasses.asdict`` and JSON made."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


@dataclasses.dataclass
class Classifier:
    """A base model with a new head: ``head`` names the head modules, ``library`` the package it comes from.

    ``warnings`` says what makes results with it differ from published ones.
    """

    module: nn.Module
    name: str
    library: Literal["timm", "transformers"]
    head: tuple[str, ...]
    preprocessing: Preprocessing
    forward_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    processor: Any = None
    warnings: tuple[str, ...] = ()

    def logits(self, module: nn.Module, images: Tensor) -> Tensor:
        """Logits (N, classes) of ``module`` (this model, bare or with an adapter) for images (N, 3, H, W)."""
        if self.library == "timm":
            return module(images)
        return module(pixel_values=images, **self.forward_args).logits

    def random_inputs(self, count: int, seed: int = 0) -> Any:
        """``count`` random images (N, 3, H, W), on the CPU: what :meth:`logits` takes."""
        size = self.preprocessing.size
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward instead of keeping them."""
        try:
            if self.library == "timm":
                self.module.set_grad_checkpointing(True)  # type: ignore[operator]
            else:
                self.module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        except (AttributeError, AssertionError, ValueError) as error:
            raise InputError(
                f"{self.name} does not support gradient checkpointing: leave --grad-checkpointing out"
            ) from error


def build_classifier(
    name: str,
    num_classes: int,
    *,
    image_size: int | None = None,
    weights: str | None = None,
    random_weights: bool = False,
    model_args: Mapping[str, Any] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    class_names: list[str] | None = None,
    seed: int = 0,
) -> Classifier:
    """The model ``name`` with a freshly initialised head for ``num_classes``.

    Weights come from the hub (default), from the file ``weights``, or are random (``random_weights``); random
    numbers depend on ``seed`` alone. InputError for an unknown model, weights that do not fit or are not finite,
    and an image size the model cannot take.
    """
    if weights is not None and random_weights:
        raise InputError("--weights and --random-weights exclude each other: give one of them")
    torch.manual_seed(seed)
    build = _build_transformers if is_transformers(name) else _build_timm
    model = build(name, num_classes, image_size, weights is None and not random_weights, dict(model_args or {}))
    if weights is not None and Path(weights).suffix == ".npz":
        load_jax(model.module, model.head, weights, name)
    elif weights is not None:
        load_backbone(model.module, read_state_dict(weights), model.head, str(weights), name, _timm_filter(model))
    torch.manual_seed(seed)
    for head in model.head:
        _initialise_head(model.module.get_submodule(head))
    given = model.preprocessing
    model.preprocessing = dataclasses.replace(given, mean=mean or given.mean, std=std or given.std)
    if not random_weights:
        model.warnings = _normalisation_warnings(given, model.preprocessing, weights)
    if class_names and model.library == "transformers":
        config: Any = model.module.config
        config.id2label = dict(enumerate(class_names))
        config.label2id = {c: i for i, c in enumerate(class_names)}
    check_finite(model.module.state_dict(), name)
    _dry_run(model)
    return model


def empty_classifier(name: str, num_classes: int) -> Classifier:
    """The model ``name`` without weights, on the meta device: for counting its parameters."""
    build = _build_transformers if is_transformers(name) else _build_timm
    with torch.device("meta"):
        return build(name, num_classes, None, False, {})


def _normalisation_warnings(given: Preprocessing, used: Preprocessing, weights: str | None) -> tuple[str, ...]:
    """What is wrong if images are ``used`` with another mean or std than the weights were trained with."""
    wanted = (given.mean, given.std)
    if weights is not None and Path(weights).suffix == ".npz":
        wanted = ((0.5,) * 3, (0.5,) * 3)  # the JAX checkpoints of ViT take images in [-1, 1]
    if np.allclose(wanted, (used.mean, used.std), atol=1e-3):
        return ()
    return (
        f"normalisation: mean {_numbers(used.mean)} and std {_numbers(used.std)} are used, but the weights were "
        f"trained with mean {_numbers(wanted[0])} and std {_numbers(wanted[1])}",
    )


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def is_transformers(name: str) -> bool:
    """Whether a model is one of transformers: a folder that names its class, or a hub id that is not timm's."""
    if (Path(name) / "config.json").is_file():
        return "architectures" in json.loads((Path(name) / "config.json").read_text())
    return "/" in name and not name.startswith(("timm/", "hf-hub:", "hf_hub:", "local-dir:"))


def _build_timm(
    name: str, num_classes: int, image_size: int | None, pretrained: bool, model_args: dict[str, Any]
) -> Classifier:
    import timm
    from timm.data import resolve_model_data_config

    if name.startswith("timm/"):
        name = "hf-hub:" + name
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        raise InputError(
            f"model {name!r} is neither a timm model nor a transformers hub id or directory; "
            + near(name, timm.list_models())
        )
    args = {"num_classes": num_classes, **model_args}
    sized = {**args, "img_size": image_size} if image_size is not None else args
    try:
        try:
            module = timm.create_model(name, pretrained=pretrained, **sized)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            module = timm.create_model(name, pretrained=pretrained, **args)  # takes images of any size
    except TypeError as error:
        raise InputError(f"--model-args {model_args} do not suit {name}: {error}") from error
    except (AssertionError, ValueError, RuntimeError, OSError) as error:
        hint = "; without network give --weights FILE or --random-weights" if pretrained else ""
        raise InputError(f"model {name!r} cannot be built: {_one_line(error)}{hint}") from error
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if image_size is not None and patch and image_size % patch[0]:
        raise InputError(f"--image-size {image_size} is not a multiple of the patch size {patch[0]} of {name}")
    found = module.get_classifier()
    wanted = {id(m) for m in (found if isinstance(found, tuple) else (found,))}
    head = tuple(n for n, m in module.named_modules() if id(m) in wanted)
    if not head or any(not list(module.get_submodule(h).parameters()) for h in head):
        raise InputError(f"{name} has no classifier head that could be trained")
    data = resolve_model_data_config(module)
    preprocessing = Preprocessing(
        size=image_size or data["input_size"][-1],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        crop_pct=data["crop_pct"],
    )
    return Classifier(module, name, "timm", head, preprocessing)


def _build_transformers(
    name: str, num_classes: int, image_size: int | None, pretrained: bool, model_args: dict[str, Any]
) -> Classifier:
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    try:
        config = AutoConfig.from_pretrained(name, num_labels=num_classes, **model_args)
        if pretrained:
            module = AutoModelForImageClassification.from_pretrained(
                name, config=config, ignore_mismatched_sizes=True, dtype=torch.float32
            )
        else:
            module = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"model {name!r} cannot be loaded by transformers: {_one_line(error)}") from error
    heads = [h for h in ("classifier", "head", "score") if isinstance(getattr(module, h, None), nn.Module)]
    if not heads:
        raise InputError(f"{name}: no head named classifier, head or score found in {type(module).__name__}")
    size, forward_args = getattr(config, "image_size", None), {}
    size = size[0] if isinstance(size, (list, tuple)) else size
    if image_size is not None and size is not None and image_size != size:
        if "interpolate_pos_encoding" not in inspect.signature(module.forward).parameters:
            raise InputError(f"{name} takes images of {size} pixels only: leave --image-size out")
        forward_args = {"interpolate_pos_encoding": True}
    size = image_size or size or processor.size.get("height") or processor.size.get("shortest_edge")
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    preprocessing = Preprocessing(
        size=int(size),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        interpolation=names.get(int(processor.resample), "bilinear"),
        crop_pct=getattr(processor, "crop_pct", None) or 0.875,
    )
    return Classifier(module, name, "transformers", (heads[0],), preprocessing, forward_args, processor)


def _timm_filter(model: Classifier) -> Any:
    """The architecture's own converter of checkpoints (position embeddings of another size), if it has one."""
    if model.library != "timm":
        return None
    return getattr(sys.modules[type(model.module).__module__], "checkpoint_filter_fn", None)


def _initialise_head(head: nn.Module) -> None:
    """Truncated normal of std 0.02 and zero bias, for every library and architecture alike."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]


def _dry_run(model: Classifier) -> None:
    """One empty image through the model, so that a size that does not suit is an error before any work."""
    size = model.preprocessing.size
    model.module.eval()
    try:
        with torch.no_grad():
            model.logits(model.module, torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"{model.name} cannot take images of {size}x{size} pixels: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__


def parameter_counts(module: nn.Module, head: tuple[str, ...]) -> dict[str, int]:
    """Numbers of parameters: trainable = adapter + head, and total (the trained copy of a head counts once)."""
    counts = {"trainable": 0, "adapter": 0, "head": 0, "total": 0}
    for name, p in module.named_parameters():
        plain = name.removeprefix("base_model.model.")
        if ".original_module." in name:
            continue
        counts["total"] += p.numel()
        if p.requires_grad:
            counts["trainable"] += p.numel()
            counts["head" if in_modules(plain, head) else "adapter"] += p.numel()
    return counts
