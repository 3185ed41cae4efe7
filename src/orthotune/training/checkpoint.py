"""What a killed run continues from: the trained tensors and the optimizer, never the frozen base."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import InputError
from orthotune.training.files import write_torch


@dataclass
class Progress:
    """The state after ``epoch`` finished epochs. ``curve`` holds one entry per epoch."""

    epoch: int = 0
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    peak_memory: int = 0


def copy_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


def save_checkpoint(
    path: Path, progress: Progress, tensors: dict[str, Tensor], optimiser: Any, scaler: Any, data_sha256: str
) -> None:
    """Write everything a continuation needs, atomically. Random state is not needed: each epoch seeds itself."""
    state = {
        "progress": vars(progress),
        "tensors": copy_tensors(tensors),
        "optimizer": optimiser.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "data_sha256": data_sha256,
    }
    write_torch(path, state)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote, on the CPU; InputError if it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise InputError(f"checkpoint {str(path)!r} is damaged: start anew with --overwrite") from error
