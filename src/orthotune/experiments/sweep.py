"""``run_sweep``: from a checked configuration to results, an index and a table, whatever was done before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from orthotune.cli.tables import text
from orthotune.errors import InputError
from orthotune.experiments.config import SweepConfig
from orthotune.experiments.index import write_index
from orthotune.experiments.plan import Plan
from orthotune.experiments.progress import SweepProgress
from orthotune.experiments.results import Result, load_results
from orthotune.experiments.schedule import Schedule
from orthotune.experiments.summary import summary
from orthotune.training.files import write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def run_sweep(config: SweepConfig, *, rerun_failed: bool = False, quiet: bool = False) -> list[Result]:
    """Execute what is not yet done of ``config`` and return the results of all its runs, final ones last.

    InputError for everything that can be wrong with the input, before any run starts. Interrupted at any moment and
    called again, it loses at most what the runs in progress did since their last epoch.
    """
    schedule = Schedule(Plan(config), rerun_failed=rerun_failed)
    with _locked(config.out):
        write_text(config.out / "sweep.yaml", config.to_yaml())
        progress = SweepProgress(schedule, Console(file=sys.stderr, quiet=quiet))
        if not schedule.is_finished():
            try:
                from orthotune.experiments.on_ray import execute_all
            except ImportError as error:
                raise InputError(f"a sweep needs Ray Tune ({error}): pip install 'orthotune[sweep]'") from error
            with progress.shown():
                execute_all(schedule, config.ray, progress.told)
        results = [schedule.results[id] for id in schedule.results]
        write_outcome(config)
    return sorted(results, key=lambda r: (r.phase == "final", r.task, r.name, r.seed))


def write_outcome(config: SweepConfig) -> None:
    """Write index.sqlite and table.md from the runs' JSON files."""
    results = load_results(config.out / "runs")
    write_index(results, config.out / "index.sqlite")
    head, lines = summary(results, [row.name for row in config.rows], [task.name for task in config.tasks])
    write_text(config.out / "table.md", text(head, lines, "markdown"))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder of a sweep, so that no second one writes there; InputError if one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"a sweep is running in {str(folder)!r} already: wait for it or stop it") from error
        file.write(str(os.getpid()))
        file.flush()
        yield
