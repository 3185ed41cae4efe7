"""AdamW's parameter groups and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from orthotune.models.adapt import AdaptedModel
from orthotune.targets.kinds import in_modules
from orthotune.training.config import FitConfig


def build_optimiser(model: AdaptedModel, config: FitConfig) -> torch.optim.AdamW:
    """AdamW over adapter and head, each with and without weight decay; ``base_lr`` is a group's peak rate."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, p in model.module.named_parameters():
        if p.requires_grad:
            head = in_modules(name.removeprefix("base_model.model."), model.classifier.head)
            groups.setdefault((head, config.decay_1d or p.ndim > 1), []).append(p)
    return torch.optim.AdamW(
        [
            {
                "params": params,
                "weight_decay": config.weight_decay if decays else 0.0,
                "base_lr": config.head_lr if head else config.lr,
            }
            for (head, decays), params in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.lr or 0.0,
        fused=all(p.device.type in ("cpu", "cuda") for group in groups.values() for p in group),
    )


def schedule(step: int, total: int, warmup: int) -> float:
    """Factor on the peak rate at update ``step`` (from 0): linear up over ``warmup`` updates, then cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_learning_rate(groups: Iterable[dict[str, Any]], factor: float) -> None:
    """Set each group's rate to its peak times ``factor``."""
    for group in groups:
        group["lr"] = group["base_lr"] * factor
