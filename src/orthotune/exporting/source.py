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
from orthotune.models import AdaptedModel
from orthotune.models.adapt import adapter_config, load_adapter
from orthotune.models.by_name import build_model, language_head
from orthotune.models.weights import read_state_dict
from orthotune.training.merging import relative_difference


def open_adapter(
    folder: str | Path,
    model: str,
    *,
    weights: str | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    classes: int | None = None,
) -> AdaptedModel:
    """Load a saved adapter, with its head, onto the model ``model``.

    An adapter without a head is refused, unless ``classes`` says how many classes a new one is to have, or the model is
    a causal one. Raises InputError for a folder without an adapter, and a model that does not fit it.
    """
    folder = Path(folder)
    config = adapter_config(folder)
    head = language_head(model, config)
    classifier = build_model(
        model,
        0 if head == "tokens" else _num_classes(config, folder, classes),
        head=head,
        image_size=image_size,
        weights=weights,
        model_args=model_args,
    )
    return load_adapter(classifier, _method(config), config, folder)


def _method(config: PeftConfig) -> str:
    """Return the registry's name for the adapter's method, PEFT's for one that is not in it."""
    same = [name for name, m in METHODS.items() if m.is_adapter and type(config) is m.config_class()]
    fits = [n for n in same if all(getattr(config, key, None) == value for key, value in METHODS[n].defaults.items())]
    return max(fits or same, key=lambda name: len(METHODS[name].defaults), default=config.peft_type.value.lower())


def _num_classes(config: Any, folder: Path, classes: int | None) -> int:
    """Return the rows of the head's last weight, the fewest among modules saved whole; ``classes`` without one."""
    state = read_state_dict(folder / "adapter_model.safetensors")
    saved = tuple(f"base_model.model.{module}." for module in config.modules_to_save or ())
    rows = [len(tensor) for name, tensor in state.items() if tensor.ndim == 2 and name.startswith(saved)]
    if rows:
        return min(rows)
    if classes is not None:
        return classes
    raise InputError(
        f"adapter {str(folder)!r} holds no classifier head (modules_to_save), so it is not one of a classifier; "
        "load the model in Python and call orthotune.export_to_lora"
    )


def lora_difference(model: AdaptedModel, folder: str | Path, seed: int = 0) -> float:
    """Return how far the logits with the LoRA in ``folder`` are from the adapted model's, relative to the largest.

    Measured on four random inputs, with the LoRA on a copy of the base model.
    """
    adapted: Any = copy.deepcopy(model.module).eval()
    inputs = model.classifier.random_inputs(4, seed)
    with torch.no_grad():
        before = model.classifier.logits(adapted, inputs)
        lora = PeftModel.from_pretrained(adapted.unload(), str(folder)).eval()
        return relative_difference(before, model.classifier.logits(lora, inputs))
