"""The result file of a run, and the facts about the machine that belong in it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from orthotune.errors import InputError
from orthotune.training.files import write_json

FORMAT_VERSION = 1


@dataclass
class Metrics:
    """Everything about a finished run; the fields of metrics.json (see docs/command-line.md)."""

    config: dict[str, Any]
    seed: int
    versions: dict[str, str | None]
    machine: dict[str, Any]
    data: dict[str, Any]
    preprocessing: dict[str, Any]
    base_sha256: str
    parameters: dict[str, int]
    step_seconds_median: float
    train_seconds: float
    peak_memory_bytes: int | None
    peak_memory_kind: str
    curve: list[dict[str, float]]
    best: dict[str, Any]
    test: dict[str, Any] | None = None
    orthogonality_defect: float | None = None
    metric: str = "top1"
    format_version: int = FORMAT_VERSION

    @property
    def test_accuracy(self) -> float | None:
        """Top-1 accuracy on test/ in [0, 1], None without test/ and for tasks that are not of images."""
        return None if self.test is None else self.test.get("top1")

    @property
    def test_score(self) -> float | None:
        """The main test score, ``test[metric]``; None without test data."""
        return None if self.test is None else self.test[self.metric]

    def save(self, path: Path) -> None:
        """Write metrics.json."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> Metrics:
        """Read metrics.json; InputError if it is not one."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{str(path)!r} is not the metrics.json of an orthotune run: {error}") from error


def validation_score(entry: Mapping[str, Any]) -> float | None:
    """The validation score in an entry of the curve, its one ``val_`` key besides the loss; None without validation."""
    return next((value for key, value in entry.items() if key.startswith("val_") and key != "val_loss"), None)


@dataclass
class Scores:
    """Accuracies in [0, 1] of an image classifier's logits against labels."""

    images: int
    loss: float
    top1: float
    top5: float | None
    per_class_mean: float
    per_class: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As metrics.json has it."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """For the terminal."""
        return [
            f"images          {self.images}",
            f"top-1 accuracy  {self.top1:.2%}",
            *([f"top-5 accuracy  {self.top5:.2%}"] if self.top5 is not None else []),
            f"per-class mean  {self.per_class_mean:.2%}",
            f"cross-entropy   {self.loss:.4f}",
        ]


def score(loss: float, logits: Tensor, labels: Tensor, classes: list[str]) -> Scores:
    """Top-1, top-5 (from five classes on) and the mean over the classes present in ``labels``."""
    n = len(classes)
    each = multiclass_accuracy(logits, labels, n, average="none").tolist()
    present = sorted(set(labels.tolist()))
    per_class = {classes[i]: each[i] for i in present}
    return Scores(
        images=len(labels),
        loss=loss,
        top1=multiclass_accuracy(logits, labels, n, average="micro").item(),
        top5=multiclass_accuracy(logits, labels, n, average="micro", top_k=5).item() if n >= 5 else None,
        per_class_mean=sum(per_class.values()) / len(per_class),
        per_class=per_class,
    )


def versions() -> dict[str, str | None]:
    """Of Python and the packages whose change may change a result; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in (
        "orthotune",
        "torch",
        "torchvision",
        "peft",
        "transformers",
        "timm",
        "accelerate",
        "pillow",
        "tokenizers",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The system, the processor count and threads, and the accelerator if one is used."""
    info: dict[str, Any] = {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        info["gpu"] = torch.cuda.get_device_name(device)
    return info


def peak_memory(device: torch.device) -> tuple[int, str]:
    """(bytes, what they are): most allocated on a CUDA device, else the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda max allocated"
    if sys.platform == "win32":
        return 0, "unknown on Windows"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "max resident size of the process"
