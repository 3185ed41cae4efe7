"""A sweep small enough for a test, and its execution in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orthotune.experiments.config import SweepConfig
from orthotune.experiments.plan import Plan
from orthotune.experiments.schedule import Schedule
from orthotune.experiments.worker import execute
from training.tiny import settings

#: of ``settings``, what is the sweep's own business
_OF_A_RUN = ("data", "out", "method")


def sweep_values(out: Path, **changes: Any) -> dict[str, Any]:
    """A sweep file's keys, without tasks: two rows, one of them with a grid of two learning rates, two seeds."""
    fit = {key: value for key, value in settings(out, out, epochs=1).items() if key not in _OF_A_RUN}
    return {
        "out": str(out),
        "methods": ["goft", {"method": "linear", "grid": {}}],
        "grid": {"lr": [1e-3, 1e-2]},
        "seeds": [0, 1],
        "fit": fit,
        **changes,
    }


def schedule(values: dict[str, Any], **options: Any) -> Schedule:
    """The schedule of a sweep, as ``run_sweep`` makes it."""
    return Schedule(Plan(SweepConfig.from_mapping(values)), **options)


def execute_here(todo: Schedule) -> list[str]:
    """Execute every run of a schedule in this process, one after the other; their identities in order."""
    order = []
    while trial := todo.next():
        order.append(trial.id)
        todo.hear(execute(trial, threads=1))
    return order


def start(file: Path, log: Path) -> subprocess.Popen[bytes]:
    """``orthotune sweep FILE`` as a process of its own; what it prints is added to ``log``."""
    tests = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path]), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        command = [sys.executable, "-m", "orthotune", "sweep", str(file)]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def ended(process: subprocess.Popen[bytes], log: Path) -> int:
    """The exit status; skips the test on a machine too busy for Ray, whose own processes have 30 s to start."""
    status = process.wait()
    said = log.read_text()
    if status == 2 and "Ray cannot be reached at 'local'" in said and "timed out during startup" in said:
        pytest.skip("Ray does not start in time on this machine")
    return status
