"""Add a penalty to the loss in a model's output, whatever kind of output it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor


def add_to_loss(output: Any, value: Tensor | None, has_labels: bool) -> Any:
    """Return a model's output with ``value`` added to its loss: an attribute or key ``loss``, or the head of a tuple.

    A tuple's first element is a loss only if labels were given and it is a scalar.
    """
    if value is None:
        return output
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        first = output[0] if output else None
        if has_labels and isinstance(first, Tensor) and first.ndim == 0:
            return (first + value.to(first.device), *output[1:])
        return output
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        return output
    loss = loss + value.to(loss.device)
    if isinstance(output, Mapping) and not hasattr(output, "loss"):
        return {**output, "loss": loss}
    if hasattr(output, "_replace"):
        return output._replace(loss=loss)
    if hasattr(output, "__dataclass_fields__") and not isinstance(output, Mapping):
        return replace(output, loss=loss)
    output.loss = loss
    return output
