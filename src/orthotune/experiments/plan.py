"""What a sweep runs: for every row on every task the search runs, and the final runs once the search is complete."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from orthotune.errors import InputError
from orthotune.experiments.config import Row, SweepConfig
from orthotune.experiments.identity import Fingerprints, absolute, run_id
from orthotune.experiments.results import Result
from orthotune.fields import adapter_values
from orthotune.protocols.protocol import Task
from orthotune.training.config import FitConfig
from orthotune.training.fitting import read_data


@dataclass(frozen=True)
class Trial:
    """One run to execute; the fields are Result's, ``config`` holds all settings of ``fit``."""

    id: str
    phase: Literal["search", "final"]
    task: str
    name: str
    method: str
    settings: dict[str, Any]
    seed: int
    metric: str
    config: dict[str, Any]

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return Path(self.config["out"])

    def result(self, **outcome: Any) -> Result:
        """The result of this trial."""
        return Result(**vars(self), path=self.path, **outcome)


@dataclass
class Cell:
    """One row on one task. ``searches`` is empty where there is nothing to choose."""

    row: Row
    task: Task
    points: list[dict[str, Any]]
    searches: list[Trial] = field(default_factory=list)

    def best(self, results: Mapping[str, Result]) -> dict[str, Any] | None:
        """The point of the highest mean validation score over the search seeds.

        Among equals the one of the lower loss, then the earlier one. Points with a run that failed or was stopped
        come after all others; None if no run of any point finished.
        """
        if not self.searches:
            return self.points[0]
        ranked = []
        for index, point in enumerate(self.points):
            runs = [results[trial.id] for trial in self.searches if trial.settings == point]
            done = [run for run in runs if run.status == "finished"]
            if done:
                score, loss = fmean(run.score or 0.0 for run in done), fmean(run.loss or 0.0 for run in done)
                ranked.append((-len(done), -score, loss, index))
        return self.points[min(ranked)[-1]] if ranked else None


class Plan:
    """Every run of a sweep that can be known before its search, all settings checked; InputError for what is wrong."""

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        self._prints = Fingerprints(config.out / "fingerprints.json" if config.out.is_dir() else None)
        self._validation: dict[str, Literal["join", "none"]] = {}
        self.cells = [self._cell(row, task) for task in config.tasks for row in config.rows]

    def __len__(self) -> int:
        return sum(len(cell.searches) + len(self.config.seeds) for cell in self.cells)

    def searches(self) -> Iterator[Trial]:
        """The search runs, cell by cell, so that the first cells are complete early."""
        for cell in self.cells:
            yield from cell.searches

    def finals(self, cell: Cell, point: dict[str, Any]) -> list[Trial]:
        """The final runs of a row on a task, with the settings that its search found best."""
        return [self._trial("final", cell.row, cell.task, point, seed) for seed in self.config.seeds]

    def _cell(self, row: Row, task: Task) -> Cell:
        cell = Cell(row, task, list(row.points()))
        self._check(row, task, cell.points)
        if len(cell.points) > 1:
            seeds = self.config.selection_seeds
            cell.searches = [self._trial("search", row, task, point, s) for point in cell.points for s in seeds]
        return cell

    def _check(self, row: Row, task: Task, points: list[dict[str, Any]]) -> None:
        """Let every final run's settings be checked now, not after the search; and the data of a task, once."""
        try:
            for point in points:
                settings = self.config.settings(row, task, point)
                self._prints.of(settings["data"])
                adapter_values(row.method, settings["adapter"])
                if task.name not in self._validation:
                    self._validation[task.name] = self._splits({**settings, "out": str(self.config.out / "runs")})
                self._trial("final", row, task, point, self.config.seeds[0])
        except InputError as error:
            raise InputError(f"row {row.name!r} on task {task.name!r}: {error}") from error

    def _splits(self, settings: dict[str, Any]) -> Literal["join", "none"]:
        """How the final runs of a task train on all but the test data; InputError for data that cannot be used."""
        data = read_data(FitConfig.from_mapping({**settings, "validation": "none"}))
        if "test" not in data.splits:
            raise InputError(f"{settings['data']!r} has no test data for the final runs")
        read_data(FitConfig.from_mapping({**settings, "validation": "auto", "test": False}))
        try:
            read_data(FitConfig.from_mapping({**settings, "validation": "join"}))
        except InputError:  # no validation data of its own
            return "none"
        return "join"

    def _trial(
        self, phase: Literal["search", "final"], row: Row, task: Task, point: dict[str, Any], seed: int
    ) -> Trial:
        given = self.config.settings(row, task, point)
        given.update(seed=seed, out="unknown", test=phase == "final")
        given["validation"] = self._validation[task.name] if phase == "final" else "auto"
        settings = dataclasses.asdict(FitConfig.from_mapping(given))
        places = [key for key in ("data", "weights") if settings[key] is not None]
        places += ["model"] if Path(settings["model"]).exists() else []
        settings.update({key: absolute(settings[key]) for key in places})
        found = run_id((phase, task.name, row.name), settings, {key: self._prints.of(settings[key]) for key in places})
        settings["out"] = str(self.config.out / "runs" / found)
        return Trial(found, phase, task.name, row.name, row.method, dict(point), seed, task.metric, settings)
