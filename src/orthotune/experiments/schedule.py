"""The order of a sweep's runs: searches, and a cell's final runs as soon as its own search is complete."""

from __future__ import annotations

from collections import deque

from orthotune.experiments.plan import Cell, Plan, Trial
from orthotune.experiments.results import FILE, Result, load_result


class Schedule:
    """Hands out the trials of a plan one by one and hears their results; knows what an earlier start finished.

    ``known`` counts those, ``impossible`` the final runs of cells whose search failed as a whole; ``slots`` is how many
    runs are executed at once. ``rerun_failed`` executes failed runs of an earlier start again.
    """

    def __init__(self, plan: Plan, *, rerun_failed: bool = False) -> None:
        self.plan, self.rerun_failed = plan, rerun_failed
        self.results: dict[str, Result] = {}
        self.known = 0
        self.impossible = 0
        self.slots = 1
        self._given = 0
        self._queue: deque[Trial] = deque()
        self._cells = {trial.id: cell for cell in plan.cells for trial in cell.searches}
        self._waiting = {id(cell): len(cell.searches) for cell in plan.cells}
        for cell in plan.cells:
            for trial in cell.searches:
                self._add(trial)
            if not cell.searches:
                for trial in plan.finals(cell, cell.points[0]):
                    self._add(trial)

    @property
    def total(self) -> int:
        """Runs that the sweep has, done or not, but for final runs whose search failed as a whole."""
        return len(self.plan) - self.impossible

    @property
    def failed(self) -> list[Result]:
        """Results of failed runs."""
        return [result for result in self.results.values() if result.status == "failed"]

    @property
    def running(self) -> int:
        """Runs in progress; more may have been handed out, to be ready when one of the ``slots`` is free."""
        return min(self._given, self.slots)

    def is_finished(self) -> bool:
        """Whether every run has its result."""
        return len(self.results) == self.total

    def next(self) -> Trial | None:
        """The next run to execute; None while there is none, which may change with the next result."""
        if not self._queue:
            return None
        self._given += 1
        return self._queue.popleft()

    def hear(self, result: Result) -> None:
        """Take the result of a run that ``next`` gave."""
        self._given -= 1
        self._take(result)

    def _take(self, result: Result) -> None:
        self.results[result.id] = result
        cell = self._cells.get(result.id)
        if cell is not None:
            self._waiting[id(cell)] -= 1
            if not self._waiting[id(cell)]:
                self._complete(cell)

    def _complete(self, cell: Cell) -> None:
        """Put the final runs of a searched cell first."""
        point = cell.best(self.results)
        if point is None:
            self.impossible += len(self.plan.config.seeds)
            return
        for trial in reversed(self.plan.finals(cell, point)):
            self._add(trial, first=True)

    def _add(self, trial: Trial, *, first: bool = False) -> None:
        known = load_result(trial.path) if (trial.path / FILE).is_file() else None
        if known is not None and not (known.status == "failed" and self.rerun_failed):
            self.known += 1
            self._take(known)
        elif first:
            self._queue.appendleft(trial)
        else:
            self._queue.append(trial)
