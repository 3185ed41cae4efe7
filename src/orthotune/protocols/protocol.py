"""Reading a protocol file, with every key checked.

::

    title: VTAB-1k
    source: "Zhai et al., arXiv 1910.04867"
    metric: top1                                 # key of a run's test scores
    fit: {epochs: 100, augment: vtab}            # settings of every task
    groups: {natural: [cifar100], specialized: [eurosat]}
    tasks:
      cifar100:
        data: "vtab:{root}/cifar"
        fit: {image_size: 224}                   # optional: settings of this task
        metric: top1                             # optional: another metric
        expect: {classes: 100, train: 800, val: 200, test: 10000}
    grids:
      rlrr: {lr: [0.001, 0.003], adapter.r: [4, 8]}
      default: {lr: [0.001, 0.003]}              # every other method
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from orthotune.errors import InputError
from orthotune.methods import METHODS, near
from orthotune.training.config import FitConfig, read_yaml

#: Values to try of each setting.
Grid = Mapping[str, tuple[Any, ...]]

#: What may stand under a task's ``expect``; counts are of examples.
EXPECTED = ("classes", "train", "val", "test", "format", "size")


@dataclass(frozen=True)
class Task:
    """One data set of a protocol. ``data`` may contain ``{root}``, the folder that the user keeps the data in."""

    name: str
    data: str
    fit: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "top1"
    expect: Mapping[str, Any] = field(default_factory=dict)

    def at(self, root: str | None) -> Task:
        """The task with ``{root}`` filled in; InputError where it is needed and not given."""
        if "{root}" not in self.data:
            return self
        if root is None:
            raise InputError(f"task {self.name!r} is at {self.data!r}: say with root: FOLDER where the data are")
        return dataclasses.replace(self, data=self.data.replace("{root}", root.rstrip("/")))


@dataclass(frozen=True)
class Protocol:
    """A protocol file. ``groups`` maps a group to its tasks' names, ``grids`` a method (or "default") to its grid."""

    name: str
    title: str
    source: str
    metric: str
    tasks: Mapping[str, Task]
    fit: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)

    def grid(self, method: str) -> Grid:
        """The grid of ``method``, else the default one, else an empty one."""
        return self.grids.get(method, self.grids.get("default", {}))


def protocol_names() -> list[str]:
    """The protocols of this package."""
    files = (entry.name for entry in resources.files(__package__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_protocol(name: str | Path) -> Protocol:
    """A protocol of this package by name, or one of your own by its file's path; InputError for a wrong one."""
    if str(name).endswith((".yaml", ".yml")):
        path = Path(name)
    elif str(name) in protocol_names():
        path = Path(str(resources.files(__package__))) / f"{name}.yaml"
    else:
        hint = near(str(name), protocol_names()) if protocol_names() else "there is none of that name"
        raise InputError(f"protocol {str(name)!r} is unknown; {hint} (a file's name ends in .yaml)")
    return _protocol(read_yaml(path), path)


def _protocol(values: Mapping[str, Any], path: Path) -> Protocol:
    where = f"protocol {str(path)!r}"
    known = [f.name for f in dataclasses.fields(Protocol) if f.name != "name"]
    check_keys(values, known, where)
    for key in ("title", "source", "metric"):
        if not isinstance(values.get(key), str):
            raise InputError(f"{where}: {key} is {values.get(key)!r}; it must be text")
    fit = fit_settings(values.get("fit"), f"{where}: fit")
    tasks = read_tasks(values.get("tasks"), values["metric"], where)
    groups = mapping(values.get("groups"), f"{where}: groups")
    for group, members in groups.items():
        if not isinstance(members, list):
            raise InputError(f"{where}: group {group!r} is {members!r}; it must be a list of tasks")
        for member in members:
            if member not in tasks:
                raise InputError(
                    f"{where}: group {group!r} has the unknown task {member!r}; {near(str(member), tasks)}"
                )
    grids = mapping(values.get("grids"), f"{where}: grids")
    check_keys(grids, [*METHODS, "default"], f"{where}: grids")
    return Protocol(
        name=path.stem,
        title=values["title"],
        source=values["source"],
        metric=values["metric"],
        tasks=tasks,
        fit=fit,
        groups={group: tuple(members) for group, members in groups.items()},
        grids={method: read_grid(grid, f"{where}: grid of {method}") for method, grid in grids.items()},
    )


def read_tasks(value: Any, metric: str, where: str) -> dict[str, Task]:
    """The tasks under ``tasks:``, each ``{data, fit, metric, expect}``; ``metric`` is that of tasks without one."""
    tasks = {}
    for name, entry in mapping(value, f"{where}: tasks").items():
        place = f"{where}: task {name!r}"
        entry = mapping(entry, place)
        check_keys(entry, [f.name for f in dataclasses.fields(Task) if f.name != "name"], place)
        if not isinstance(entry.get("data"), str):
            raise InputError(f"{place}: data is {entry.get('data')!r}; it must say where the data are")
        expect = mapping(entry.get("expect"), f"{place}: expect")
        check_keys(expect, EXPECTED, f"{place}: expect")
        own = fit_settings(entry.get("fit"), f"{place}: fit")
        tasks[str(name)] = Task(str(name), entry["data"], own, str(entry.get("metric", metric)), expect)
    if not tasks:
        raise InputError(f"{where}: tasks is empty; it must hold 'name: {{data: ...}}'")
    return tasks


def fit_settings(value: Any, where: str) -> dict[str, Any]:
    """Settings of ``fit`` that may be given for many runs at once; InputError for an unknown one."""
    settings = mapping(value, where)
    own = ("data", "out", "method", "seed", "validation", "test")  # a sweep sets these itself
    known = [f.name for f in dataclasses.fields(FitConfig) if f.name not in own]
    check_keys(settings, known, where)
    return settings


def read_grid(value: Any, where: str) -> dict[str, tuple[Any, ...]]:
    """Values by setting; a single value stands for a list of one."""
    grid = {}
    for key, values in mapping(value, where).items():
        grid[str(key)] = tuple(values) if isinstance(values, list) else (values,)
        if not grid[str(key)]:
            raise InputError(f"{where}: {key} is empty; it must hold at least one value")
    return grid


def mapping(value: Any, where: str) -> dict[str, Any]:
    """``value``, or an empty dict for nothing; InputError if it is something else than 'name: value' lines."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r}; it must hold 'name: value' lines")
    return value


def check_keys(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """InputError with near names for the first key that is not ``known``."""
    known = list(known)
    for key in values:
        if key not in known:
            raise InputError(f"{where}: {str(key)!r} is unknown; {near(str(key), known)}")
