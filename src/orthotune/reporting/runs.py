"""What tables and figures ask of a run: its settings by name, its scores, what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from orthotune.errors import InputError
from orthotune.experiments.results import Result, load_results
from orthotune.methods import METHODS, near
from orthotune.training.config import RUNTIME_FIELDS, read_yaml
from orthotune.training.metrics import Metrics

#: What a run cost: by name, its title and the digits it is printed with.
COSTS = {
    "parameters": ("parameters (M)", 3),
    "trained": ("with head (M)", 3),
    "step_time": ("step (ms)", 1),
    "train_time": ("training (s)", 1),
    "memory": ("memory (MiB)", 0),
}
Cost = Literal["parameters", "trained", "step_time", "train_time", "memory"]

#: Settings that tell no two runs of a table's cell apart: where they lie, and what the cells average over.
_NOT_SETTINGS = RUNTIME_FIELDS | {"data", "seed", "device"}


@dataclass(frozen=True)
class Run:
    """A :class:`~orthotune.experiments.results.Result` and, read when asked for, its metrics.json."""

    result: Result

    @cached_property
    def metrics(self) -> Metrics | None:
        """Everything about the run, None where it did not finish."""
        return self.result.metrics()

    @property
    def finished(self) -> bool:
        """Whether it came to its end and was scored."""
        return self.result.status == "finished"

    def score(self, metric: str | None = None) -> float | None:
        """A score in per cent: the run's own, or another of its test scores."""
        result = self.result
        value = result.score
        if metric not in (None, result.metric):
            test = self.metrics.test if self.metrics else None
            value = (test or {}).get(metric)
        return 100 * value if isinstance(value, (int, float)) and self.finished else None

    def cost(self, name: str) -> float | None:
        """One of :data:`COSTS`, in the unit of its title."""
        metrics = self.metrics
        if metrics is None:
            return None
        if name in ("parameters", "trained"):
            count = metrics.parameters.get("adapter" if name == "parameters" else "trainable")
            return None if count is None else count / 1e6
        if name == "step_time":
            return 1e3 * metrics.step_seconds_median
        if name == "train_time":
            return metrics.train_seconds
        return None if metrics.peak_memory_bytes is None else metrics.peak_memory_bytes / 2**20

    def value(self, key: str) -> Any:
        """A field of the result, or a setting by its name (``lr``) or path (``adapter.r``); None where it is absent."""
        if key in ("name", "method", "task", "seed", "phase", "metric", "id"):
            return getattr(self.result, key)
        if key in self.result.settings:
            return self.result.settings[key]
        found: Any = self.result.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    @cached_property
    def flat(self) -> dict[str, Any]:
        """All settings that may tell it from another run, by path."""
        settings = {k: v for k, v in self.result.config.items() if k not in _NOT_SETTINGS}
        return dict(_flat(settings))


def _flat(values: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        elif not isinstance(value, dict):
            yield before + key, value


def load_runs(folders: Sequence[str], optional: Sequence[str] = ()) -> list[Run]:
    """The runs of all folders, each once; InputError for a folder that is missing, or has none and is not optional."""
    found: dict[Path, Run] = {}
    for folder in folders:
        if folder in optional and not any(any(Path(folder).rglob(name)) for name in ("metrics.json", "trial.json")):
            continue
        for result in load_results(folder):
            found.setdefault(result.path.resolve(), Run(result))
    return list(found.values())


def protocol_of(folders: Sequence[str]) -> str | None:
    """The protocol that a sweep's folder names in its sweep.yaml, if they name one."""
    names = {read_yaml(file).get("protocol") for folder in folders if (file := Path(folder) / "sweep.yaml").is_file()}
    names.discard(None)
    return str(names.pop()) if len(names) == 1 else None


def select(runs: Iterable[Run], conditions: Iterable[str]) -> list[Run]:
    """The runs of which every ``NAME=VALUE`` is true; InputError for another form, or if none is left."""
    runs = list(runs)
    for condition in conditions:
        name, sign, wanted = condition.partition("=")
        if not sign:
            raise InputError(f"--where {condition!r} is not of the form NAME=VALUE, such as lr=0.01 or task=cifar100")
        require_key(runs, name, "--where")
        values = {_text(run.value(name)) for run in runs}
        runs = [run for run in runs if _same(run.value(name), wanted)]
        if not runs:
            raise InputError(f"--where {condition}: no run has it; {name} is one of: {', '.join(sorted(values)[:20])}")
    return runs


def _same(value: Any, wanted: str) -> bool:
    if _text(value) == wanted:
        return True
    try:
        return not isinstance(value, bool) and float(value) == float(wanted)
    except (TypeError, ValueError):
        return False


def require_key(runs: Sequence[Run], key: str, option: str) -> None:
    """InputError unless some run has a value of this name."""
    if not runs or any(run.value(key) is not None for run in runs):
        return
    known = {"name", "method", "task", "seed", *(k for run in runs for k in (*run.flat, *run.result.settings))}
    raise InputError(f"{option} {key!r} is no setting of these runs; {near(key, known)}")


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which the runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.flat)
    return [key for key in keys if len({_text(run.flat.get(key)) for run in runs}) > 1]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def row_keys(runs: Sequence[Run]) -> tuple[str, ...]:
    """What tells the rows of ``runs`` apart: the name, and settings in which runs of one name, task and seed differ."""
    twins: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        twins.setdefault((run.result.name, run.result.task, run.result.seed), []).append(run)
    return ("name", *dict.fromkeys(key for group in twins.values() for key in differing(group)))


def label(run: Run, keys: Sequence[str]) -> str:
    """The values of ``keys`` as one name: ``rlrr``, ``rlrr lr=0.01``."""
    own = {"name", "method", "task"}
    parts = [(key, run.value(key)) for key in keys]
    return " ".join(str(v) if k in own else f"{k}={_plain(v)}" for k, v in parts)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else _text(value)


def order(run: Run, keys: Sequence[str]) -> tuple[Any, ...]:
    """A key to sort by: methods as in the registry, numbers by size, other values by name."""
    place = {name: i for i, name in enumerate(METHODS)}
    parts: list[Any] = []
    for key in keys:
        value = run.value(key)
        if key in ("name", "method"):
            parts += [place.get(run.result.method, len(place))]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        parts += [(0, value, "") if number else (1, 0, _text(value))]
    return tuple(parts)
