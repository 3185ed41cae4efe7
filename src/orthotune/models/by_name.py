"""A base model by name for looking at, or for a saved adapter: an image classifier or a language model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orthotune.errors import InputError
from orthotune.models.build import Classifier, build_classifier, is_transformers
from orthotune.models.text import Head, build_text_model

#: how the names of transformers' classes end -> what they give
_HEADS: dict[str, Head] = {
    "ForSequenceClassification": "classes",
    "ForQuestionAnswering": "span",
    "ForCausalLM": "tokens",
    "LMHeadModel": "tokens",
}
_TASK_TYPES: dict[str, Head] = {"SEQ_CLS": "classes", "QUESTION_ANS": "span", "CAUSAL_LM": "tokens"}


def build_model(
    name: str,
    classes: int,
    *,
    head: Head | None,
    weights: str | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Classifier:
    """The image classifier ``name`` with a new head for so many classes, or the language model with a ``head``.

    InputError as of the two builders, and for ``image_size`` with texts.
    """
    if head is None:
        return build_classifier(name, classes, image_size=image_size, weights=weights, model_args=model_args)
    if image_size is not None:
        raise InputError(f"--image-size is {image_size}, but {name!r} is a language model: leave it out")
    return build_text_model(name, head, [str(i) for i in range(classes)], weights=weights, model_args=model_args)


def language_head(name: str, adapter: Any = None) -> Head | None:
    """Return which head the language model ``name`` has; None for an image classifier, also for an unknown name.

    The settings of an ``adapter`` (a PeftConfig) say which it was trained with; without them it is that of the model's
    own file. InputError for an adapter of a head that is not built here.
    """
    config = _language_config(name)
    if config is None:
        return None
    return _own_head(config) if adapter is None else _adapter_head(adapter, config)


def _language_config(name: str) -> Any:
    """The settings of a language model of transformers; None for all else, also for what cannot be read."""
    if not is_transformers(name):
        return None
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto as auto

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError):
        return None
    texts = (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    images = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    kind = config.model_type
    return config if kind not in images and any(kind in names for names in texts) else None


def _own_head(config: Any) -> Head:
    """What a model of these settings gives by its own file; of a bare one the head does not matter."""
    return _head_of(config.architectures or ()) or "classes"


def _head_of(classes: Iterable[str]) -> Head | None:
    """What the first of transformers' classes gives whose name says it."""
    return next((head for name in classes for end, head in _HEADS.items() if name.endswith(end)), None)


def _adapter_head(adapter: Any, config: Any) -> Head:
    """What the model gave that the adapter was trained on; InputError if that is a head that is not built here."""
    trained_on = (adapter.auto_mapping or {}).get("base_model_class", "")
    task = getattr(adapter.task_type, "value", adapter.task_type)
    if task is None and not trained_on:
        return _own_head(config)
    found = _TASK_TYPES.get(task) if task else _head_of([trained_on])
    if found is None:
        raise InputError(
            f"the adapter was trained on {trained_on or 'a model for ' + str(task)}; by name there are models for "
            f"{', '.join(_TASK_TYPES)}: load the model in Python"
        )
    return found
