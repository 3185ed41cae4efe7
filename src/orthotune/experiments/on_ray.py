"""The bridge to Ray Tune: its searcher is our schedule, its trainable our worker, its scheduler ASHA within a cell."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_START_SECONDS = 300

#: Read by Ray when it is imported or started: no reports about the user, no output beside ours, no files beside ours.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    # a busy machine starts Ray's helper processes late
    "RAY_agent_register_timeout_ms": f"{1000 * _START_SECONDS}",
    "RAY_gcs_server_port_wait_time_s": f"{_START_SECONDS}",
    "RAY_worker_register_timeout_seconds": f"{_START_SECONDS}",
}
if Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser().is_file():
    _ENVIRONMENT["RAY_AUTH_MODE"] = "token"  # as Ray does where it finds a cluster by itself, but not by its address
os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
logging.getLogger("ray").setLevel(logging.ERROR)

import psutil  # noqa: E402
import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from orthotune.errors import InputError  # noqa: E402
from orthotune.experiments.config import RayOptions  # noqa: E402
from orthotune.experiments.plan import Trial  # noqa: E402
from orthotune.experiments.results import FILE, Result, load_result  # noqa: E402
from orthotune.experiments.schedule import Schedule  # noqa: E402

#: Once a worker process has died in a run, the run is given to another one so many times.
_RETRIES = 1
_OBJECT_STORE_BYTES = 100 << 20  # nothing but a few settings and scores is sent


def train(config: dict[str, Any]) -> None:
    """Ray Tune's trainable: one run; ``config`` has the trial's fields, ``threads`` and ``report`` (epochs)."""
    from orthotune.experiments.worker import execute
    from orthotune.training.metrics import validation_score

    def report(entry: dict[str, float]) -> None:
        tune.report({"epoch": entry["epoch"], "score": validation_score(entry), "loss": entry["val_loss"]})

    result = execute(Trial(**config["trial"]), config["threads"], report if config["report"] else None)
    values = dataclasses.asdict(result)
    del values["path"]
    tune.report({"result": json.dumps(values)})  # as text: Ray flattens mappings


class ScheduleSearcher(Searcher):
    """Gives Ray Tune the trials of a schedule, and the schedule their results."""

    def __init__(self, schedule: Schedule, options: RayOptions, told: Callable[[Result], None]) -> None:
        super().__init__()
        self._schedule, self._options, self._told = schedule, options, told
        self._running: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while the schedule waits for results, FINISHED when all are there."""
        trial = self._schedule.next()
        if trial is None:
            return Searcher.FINISHED if not self._running else None
        self._running[trial_id] = trial
        early = self._options.scheduler == "asha" and trial.phase == "search"
        return {"trial": dataclasses.asdict(trial), "threads": self._options.cpus, "report": early}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hear of a trial: its own result, or that ASHA stopped it, or that its process died."""
        trial, reported = self._running.pop(trial_id), result or {}
        if "result" in reported:
            found = Result(**json.loads(reported["result"]), path=trial.path)
        elif error:
            found = _recorded(trial) or trial.result(status="failed", error="the process of the run died")
            found.save()
        elif "score" in reported:
            scores = {"score": reported["score"], "loss": reported["loss"]}
            found = trial.result(status="stopped", **scores, seconds=reported["time_total_s"])
            found.save()
        else:  # ended with the whole sweep: the run goes on when that is started again
            return
        self._schedule.hear(found)
        self._told(found)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, either, in what Ray Tune pickles to restore a tuner."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the runs' own files are what a sweep continues from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def _recorded(trial: Trial) -> Result | None:
    return load_result(trial.path) if (trial.path / FILE).is_file() else None


class CellwiseASHA(FIFOScheduler):
    """ASHA (Li et al., arXiv 1810.05934) among the search runs of one row on one task; final runs run to their end.

    Accuracies of different tasks do not compare, so each cell has rungs of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cells: dict[tuple[str, str], AsyncHyperBandScheduler] = {}

    def _of(self, trial: Any) -> AsyncHyperBandScheduler:
        run = trial.config["trial"]
        epochs = run["config"]["epochs"]
        key = (run["task"], run["name"])
        if key not in self._cells:
            self._cells[key] = AsyncHyperBandScheduler(
                time_attr="epoch",
                metric="score",
                mode="max",
                max_t=epochs,
                grace_period=max(1, epochs // 9),
                reduction_factor=3,
                stop_last_trials=False,
            )
        return self._cells[key]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial was added."""
        if trial.config["report"]:
            self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an epoch."""
        if trial.config["report"] and "score" in result:
            return self._of(trial).on_trial_result(tune_controller, trial, result)
        return self.CONTINUE


def execute_all(schedule: Schedule, options: RayOptions, told: Callable[[Result], None]) -> None:
    """Execute every run of ``schedule`` on Ray; ``told`` hears of each as it ends."""
    if schedule.is_finished():
        return
    with _connected(options), tempfile.TemporaryDirectory(prefix="orthotune-tune-") as own:
        schedule.slots = _slots(options)
        # Ray keeps a process for the next run only if one is waiting already, so as many wait as can run at once.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(schedule.slots)
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": options.cpus, "gpu": options.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=ScheduleSearcher(schedule, options, told),
                scheduler=CellwiseASHA() if options.scheduler == "asha" else FIFOScheduler(),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=own,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
            ),
        )
        tuner.fit()


def _name(trial: Any) -> str:
    return f"{trial.config['trial']['id']}-{trial.trial_id}"


@contextmanager
def _connected(options: RayOptions) -> Iterator[None]:
    """A Ray of our own on this machine, or a connection to the one at ``options.address``; InputError without one."""
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is None:
        # a token for this Ray alone, or else Ray writes one into the home folder, for all that are started later
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        arguments.update(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES)
    else:
        arguments.update(address=options.address)
    _start(arguments, attempts=3 if options.address is None else 1)
    try:
        yield
    finally:
        ray.shutdown()


def _start(arguments: dict[str, Any], attempts: int) -> None:
    """``ray.init``, again if need be: on a busy machine Ray's own processes may miss its fixed time limits."""
    before = set(psutil.Process().children(recursive=True))
    try:
        ray.init(**arguments)
    except Exception as error:  # of any kind, from ConnectionError to a bare Exception
        ray.shutdown()
        for process in set(psutil.Process().children(recursive=True)) - before:  # what a failed start leaves running
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if attempts > 1:
            return _start(arguments, attempts - 1)
        reason = " ".join(str(error).split())
        raise InputError(f"Ray cannot be reached at {arguments['address']!r}: {reason}") from error


def _slots(options: RayOptions) -> int:
    """How many runs the nodes can execute at once; InputError if not even one."""
    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            fits = [int(resources.get("CPU", 0) // options.cpus)]
            fits += [int(resources.get("GPU", 0) / options.gpus)] if options.gpus else []
            found += min(fits)
    if not found:
        raise InputError(f"no node has {options.cpus} CPUs and {options.gpus:g} GPUs, which ray: asks for one run")
    return found
