"""Results as files: ``trial.json`` beside each run's own files says what the run was for and how it ended."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orthotune.errors import InputError
from orthotune.training.files import TEMPORARY, write_json
from orthotune.training.metrics import Metrics

FILE = "trial.json"


@dataclass(frozen=True)
class Result:
    """One run of a sweep; the fields of trial.json, and ``path``, the run's folder.

    ``name`` is the row of the table (a method, or a method with settings), ``settings`` the grid point. ``score`` is
    that of ``metric``: on the validation images in a search, on the test images in a final run (None: not scored),
    ``loss`` the loss there. ``status`` "stopped" is a search run that the scheduler gave up. ``seconds`` is the run's
    own time, all its parts together; ``started`` and ``finished`` are ISO 8601 in UTC. ``config`` are the settings of
    ``fit``.
    """

    id: str
    phase: Literal["search", "final"]
    task: str
    name: str
    method: str
    settings: dict[str, Any]
    seed: int
    status: Literal["finished", "failed", "stopped"]
    metric: str
    error: str | None = None
    score: float | None = None
    loss: float | None = None
    seconds: float = 0.0
    started: str | None = None
    finished: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    path: Path = Path()

    def save(self) -> None:
        """Write trial.json into ``path``, atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        values = dataclasses.asdict(self)
        del values["path"]
        write_json(self.path / FILE, values)

    def metrics(self) -> Metrics | None:
        """Everything about the run (metrics.json), None where it did not finish."""
        file = self.path / "metrics.json"
        return Metrics.load(file) if file.is_file() else None


def load_result(path: Path) -> Result:
    """The result in the folder ``path``: its trial.json, or what the metrics.json of a plain ``fit`` says."""
    file = path / FILE
    if not file.is_file():
        return _plain(path)
    try:
        return Result(**json.loads(file.read_text()), path=path)
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{str(file)!r} is not the result of a run: {error}") from error


def load_results(folder: str | Path) -> list[Result]:
    """The results of all runs below ``folder`` that came to an end, sorted by phase, task, name, seed and settings.

    Folders of plain ``fit`` runs count: as final runs of the task that is the last part of the data's path, in the row
    of their method. InputError if ``folder`` does not exist or has no run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"folder {str(folder)!r} does not exist")
    results = [load_result(path) for path in _runs(folder)]
    if not results:
        raise InputError(f"folder {str(folder)!r} holds no finished run ({FILE} or metrics.json)")
    return sorted(results, key=lambda r: (r.phase, r.task, r.name, r.seed, json.dumps(r.settings, default=str), r.id))


def _runs(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(TEMPORARY))
        if FILE in files or {"metrics.json", "config.yaml"} <= set(files):
            folders.clear()
            yield Path(root)


def _plain(path: Path) -> Result:
    metrics = Metrics.load(path / "metrics.json")
    config = metrics.config
    scores = metrics.test
    return Result(
        id=path.name,
        phase="final",
        task=Path(config["data"].rpartition(":")[2]).stem,
        name=config["method"],
        method=config["method"],
        settings={},
        seed=metrics.seed,
        status="finished",
        metric=metrics.metric,
        score=metrics.test_score,
        loss=None if scores is None else scores.get("loss"),
        seconds=metrics.train_seconds,
        config=config,
        path=path,
    )
