"""Scores of a finished run on a split of other data of its task."""

from __future__ import annotations

from pathlib import Path

from orthotune.progress import quietly
from orthotune.tasks.base import TaskScores
from orthotune.training.loop import build_accelerator
from orthotune.training.run import open_run


def evaluate(
    run: str | Path,
    data: str | Path,
    split: str = "test",
    *,
    weights: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    quiet: bool = False,
) -> TaskScores:
    """Scores of the run's model on the split ``split`` of ``data``; classes are matched by name.

    Data without a scheme (``SCHEME:PATH``) are read as those of the run. InputError for data that cannot be used, and
    for outputs that are not finite.
    """
    finished = open_run(run, weights=weights)
    with quietly(quiet):
        store = finished.task.read_split(str(data), split, finished.model.classifier)
        accelerator = build_accelerator(device, finished.config.precision)
        return finished.task.evaluate(finished.model, store, accelerator, batch_size)
