"""The run folder: where each file lies, and what may be done with a folder that is already there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from orthotune.errors import InputError
from orthotune.models import AdaptedModel, load_trained
from orthotune.models.weights import fingerprint
from orthotune.tasks import task_class
from orthotune.tasks.base import Task
from orthotune.training.config import FitConfig
from orthotune.training.metrics import Metrics


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of one run. ``metrics.json`` is written last: it marks the run as finished."""

    root: Path

    @property
    def config(self) -> Path:
        """The settings."""
        return self.root / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        """The state after the last finished epoch; gone when the run is finished."""
        return self.root / "checkpoint.pt"

    @property
    def trained(self) -> Path:
        """The folder of what was trained."""
        return self.root / "adapter"

    @property
    def classes(self) -> Path:
        """The class names in the order of the logits; none for a task without classes."""
        return self.root / "classes.json"

    @property
    def curve(self) -> Path:
        """The picture of the learning curve."""
        return self.root / "curve.png"

    @property
    def metrics(self) -> Path:
        """The result."""
        return self.root / "metrics.json"

    def is_run(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()

    def is_finished(self) -> bool:
        """Whether the run here came to its end."""
        return self.metrics.is_file()

    def claim(self, config: FitConfig, *, resume: bool, overwrite: bool) -> bool:
        """Check that a run may be written here; True if it continues the one that is here.

        InputError if the folder holds another run or other files. Nothing is changed.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other: give one of them")
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"--out {str(self.root)!r} is a file: give a folder")
        if not self.is_run():
            if self.root.is_dir() and any(p for p in self.root.iterdir() if not p.name.startswith(".partial-")):
                raise InputError(f"--out {str(self.root)!r} holds other files: give a new or empty folder")
            return False
        if overwrite:
            return False
        if not resume:
            raise InputError(f"--out {str(self.root)!r} already holds a run: add --resume or --overwrite")
        different = config.differing(FitConfig.load(self.config))
        if different:
            raise InputError(
                f"cannot resume {str(self.root)!r} with other settings: {', '.join(different)}; "
                "leave them as they were, or use --overwrite or another --out"
            )
        return True


@dataclass
class FinishedRun:
    """A run loaded for use: its model with the trained weights, its settings and its class names."""

    folder: RunFolder
    config: FitConfig
    metrics: Metrics
    model: AdaptedModel
    classes: list[str]
    task: Task


def open_run(root: str | Path, *, weights: str | None = None) -> FinishedRun:
    """Rebuild the model of a finished run; ``weights`` says where the base weights lie now, if they moved.

    InputError if the run is not there or not finished, or the base is not the one it was trained on.
    """
    folder = RunFolder(Path(root))
    if not folder.is_run():
        raise InputError(f"{str(root)!r} holds no run (config.yaml is missing)")
    if not folder.is_finished():
        raise InputError(f"the run {str(root)!r} is not finished: continue it with orthotune fit --resume --out {root}")
    config, metrics = FitConfig.load(folder.config), Metrics.load(folder.metrics)
    classes = json.loads(folder.classes.read_text())
    task = task_class(config.task or "image")(config, classes)
    classifier = task.build(weights)
    found = fingerprint(classifier.module, classifier.head)
    if found != metrics.base_sha256:
        raise InputError(
            f"the base model {config.model!r} has other weights than the run {str(root)!r} was trained on "
            f"(sha256 {found[:12]}, was {metrics.base_sha256[:12]}); give the right file with --weights"
        )
    task.restore(classifier, metrics.preprocessing)
    model = load_trained(classifier, config.method, config.adapter, folder.trained)
    return FinishedRun(folder, config, metrics, model, classes, task)
