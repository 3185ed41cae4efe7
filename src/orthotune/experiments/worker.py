"""What executes a run: a process that stays for many of them, so that libraries and images are loaded once."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from orthotune.data.decoded import DECODED
from orthotune.errors import InputError
from orthotune.experiments.plan import Trial
from orthotune.experiments.results import FILE, Result
from orthotune.training import FitConfig, Metrics, fit
from orthotune.training.fitting import OnEpoch
from orthotune.training.metrics import validation_score
from orthotune.training.run import RunFolder


def execute(trial: Trial, threads: int, on_epoch: OnEpoch | None = None) -> Result:
    """Run ``trial``, or continue it where it was interrupted, and write its result; a failure is a result, too."""
    torch.set_num_threads(threads)
    DECODED.budget = trial.config["cache_mb"] << 20
    if torch.cuda.is_available():  # other processes may share the device, and the run before is not this one's memory
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started, start = now(), time.perf_counter()
    (trial.path / FILE).unlink(missing_ok=True)  # of a failure: from here on the run is an interrupted one
    try:
        metrics = _fit(trial, on_epoch)
        outcome = _scores(trial, metrics)
    except Exception as error:
        outcome = {"status": "failed", "error": describe(error)}
    seconds = time.perf_counter() - start
    result = trial.result(**outcome, seconds=seconds, started=started, finished=now())
    result.save()
    return result


def _fit(trial: Trial, on_epoch: OnEpoch | None) -> Metrics:
    config = FitConfig.from_mapping(trial.config)
    folder = RunFolder(Path(config.out))
    # The identity is the same, so all that can differ is where data or weights lie now.
    moved = folder.is_run() and bool(config.differing(FitConfig.load(folder.config)))
    return fit(config, resume=not moved, overwrite=moved, quiet=True, on_epoch=on_epoch)


def _scores(trial: Trial, metrics: Metrics) -> dict[str, Any]:
    if trial.phase == "search":
        return {"status": "finished", "score": validation_score(metrics.best), "loss": metrics.best["val_loss"]}
    test = metrics.test or {}
    if not isinstance(test.get(trial.metric), int | float):
        known = ", ".join(key for key, value in test.items() if isinstance(value, int | float))
        raise InputError(f"metric {trial.metric!r} is not among the test scores ({known})")
    return {"status": "finished", "score": test[trial.metric], "loss": test.get("loss")}


def describe(error: BaseException) -> str:
    """An error as one line; of a fault of the program also its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def now() -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
