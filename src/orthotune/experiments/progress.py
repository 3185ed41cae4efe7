"""What a sweep shows while it runs: a bar on a terminal, a line per run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from orthotune.experiments.results import Result
from orthotune.experiments.schedule import Schedule


class SweepProgress:
    """Hears of every run that ended and shows how far ``schedule`` is."""

    def __init__(self, schedule: Schedule, console: Console) -> None:
        self.schedule, self.console = schedule, console
        self._start, self._before = time.perf_counter(), len(schedule.results)
        self._bar = Progress(
            TextColumn("sweep"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(self._text(), total=schedule.total, completed=self._before)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it inside."""
        with self._bar:
            yield

    def told(self, result: Result) -> None:
        """A run ended."""
        done, total = len(self.schedule.results), self.schedule.total
        self._bar.update(self._task, completed=done, total=total, description=self._text())
        if result.status == "failed" or not self.console.is_terminal:
            score = "" if result.score is None else f" {result.score:.2%}"
            error = "" if result.error is None else f": {result.error}"
            what = f"{result.task} {result.name} {result.phase} {result.settings} seed {result.seed}"
            line = f"[{done}/{total}] {what} {result.status}{score} in {result.seconds:.1f} s{error}; {self._text()}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _text(self) -> str:
        left = self._left()
        parts = [
            f"{self.schedule.running} running",
            f"{len(self.schedule.failed)} failed",
            f"{left} left" if left else "",
        ]
        return ", ".join(filter(None, parts))

    def _left(self) -> str | None:
        """Time left at the pace of the runs of this start."""
        done = len(self.schedule.results) - self._before
        if not done:
            return None
        pace = (time.perf_counter() - self._start) / done
        return str(timedelta(seconds=round(pace * (self.schedule.total - len(self.schedule.results)))))
