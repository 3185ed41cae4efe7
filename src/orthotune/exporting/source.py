"""What is exported: the model of a finished run, or a saved adapter on a model by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel

from orthotune.errors import InputError
from orthotune.methods import METHODS
from orthotune.models import AdaptedModel, build_classifier, load_trained
from orthotune.models.weights import read_state_dict
from orthotune.training.merging import relative_difference


def open_adapter(
    folder: str | Path,
    model: str,
    *,
    weights: str | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> AdaptedModel:
    """Load an image classifier's saved adapter, with its head, onto the model ``model``.

    Raises InputError for a folder without an adapter or without a head, and a model that does not fit it.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{str(folder)!r} holds no adapter (adapter_config.json is missing)")
    config = PeftConfig.from_pretrained(str(folder))
    classifier = build_classifier(
        model,
        _num_classes(config, folder),
        image_size=image_size,
        weights=weights,
        model_args=model_args,
    )
    return load_trained(classifier, _method(config), {}, folder)


def _method(config: PeftConfig) -> str:
    for name, method in METHODS.items():
        if method.is_adapter and type(config) is method.config_class():
            return name
    raise InputError(f"the adapter's method {config.peft_type.value} is not one that orthotune knows")


def _num_classes(config: Any, folder: Path) -> int:
    """Return the rows of the head's weight: the last module saved whole that has a matrix."""
    state = read_state_dict(folder / "adapter_model.safetensors")
    for module in config.modules_to_save or ():
        for name, tensor in state.items():
            if tensor.ndim == 2 and name.startswith(f"base_model.model.{module}."):
                return len(tensor)
    raise InputError(
        f"adapter {str(folder)!r} holds no classifier head (modules_to_save), so it is not one of an image classifier; "
        "load the model in Python and call orthotune.export_to_lora"
    )


def lora_difference(model: AdaptedModel, folder: str | Path, seed: int = 0) -> float:
    """Return how far the logits with the LoRA in ``folder`` are from the adapted model's, relative to the largest.

    Measured on four random images, with the LoRA on a copy of the base model.
    """
    adapted: Any = copy.deepcopy(model.module).eval()
    size = model.classifier.preprocessing.size
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        before = model.classifier.logits(adapted, images)
        lora = PeftModel.from_pretrained(adapted.unload(), str(folder)).eval()
        return relative_difference(before, model.classifier.logits(lora, images))
