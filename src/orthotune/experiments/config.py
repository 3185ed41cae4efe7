"""The settings of a sweep: what is run, on what, chosen how, and where. docs/sweeps.md describes the file."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from orthotune.errors import InputError
from orthotune.fields import adapter_fields, parse_value
from orthotune.methods import METHODS, get_method, near
from orthotune.protocols.protocol import (
    Grid,
    Protocol,
    Task,
    check_keys,
    fit_settings,
    load_protocol,
    mapping,
    read_grid,
    read_tasks,
)
from orthotune.training.config import FitConfig, read_yaml

_KEYS = (
    "out",
    "model",
    "weights",
    "protocol",
    "root",
    "tasks",
    "only",
    "metric",
    "methods",
    "grid",
    "seeds",
    "selection",
    "fit",
    "ray",
)
_FIT_FIELDS = frozenset(f.name for f in dataclasses.fields(FitConfig))


@dataclass(frozen=True)
class RayOptions:
    """Where the runs are executed. ``address`` None: processes of this machine; else a cluster ("auto", "ip:port").

    ``cpus`` and ``gpus`` (fractions allowed) are what one run occupies; ``scheduler`` "asha" stops search runs early.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    scheduler: Literal["none", "asha"] = "none"

    @classmethod
    def read(cls, value: Any, where: str) -> RayOptions:
        """From the mapping under ``ray:``."""
        values = mapping(value, where)
        hints = typing.get_type_hints(cls)
        check_keys(values, hints, where)
        options = cls(**{k: parse_value(f"{where}: {k}", hints[k], v) for k, v in values.items()})
        if options.cpus < 1:
            raise InputError(f"{where}: cpus is {options.cpus}; it must be at least 1")
        if options.gpus < 0:
            raise InputError(f"{where}: gpus is {options.gpus}; it must be at least 0")
        return options


@dataclass(frozen=True)
class Row:
    """One row of the table: a method with settings of its own, and the grid it is searched over."""

    name: str
    method: str
    adapter: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid = field(default_factory=dict)

    def points(self) -> Iterator[dict[str, Any]]:
        """The product of the grid; one empty point where there is nothing to choose."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))


@dataclass(frozen=True)
class SweepConfig:
    """A sweep, read and checked: every row on every task, searched with ``selection_seeds``, final with ``seeds``."""

    out: Path
    rows: tuple[Row, ...]
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    selection_seeds: tuple[int, ...]
    fit: Mapping[str, Any]
    ray: RayOptions
    protocol: Protocol | None
    values: Mapping[str, Any]

    def settings(self, row: Row, task: Task, point: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of ``fit`` but for ``out``, ``seed``, ``validation`` and ``test``.

        Later ones win: the protocol's, those of its task, the sweep's, those of the sweep's own task, the row's, the
        grid point's.
        """
        own_task = self.protocol is None
        layers = (
            self.protocol.fit if self.protocol else {},
            {} if own_task else task.fit,
            self.fit,
            task.fit if own_task else {},
            row.fit,
            {key: value for key, value in point.items() if key in _FIT_FIELDS},
        )
        settings = {key: value for layer in layers for key, value in layer.items()}
        searched = {key.removeprefix("adapter."): v for key, v in point.items() if key not in _FIT_FIELDS}
        adapter = {**settings.pop("adapter", {}), **row.adapter, **searched}
        return {**settings, "data": task.data, "method": row.method, "adapter": adapter}

    def to_yaml(self) -> str:
        """The text of sweep.yaml: the file as given, with what the command line changed."""
        return yaml.safe_dump(dict(self.values), sort_keys=False)

    @classmethod
    def load(cls, path: str | Path, **changes: Any) -> SweepConfig:
        """From a YAML file; ``changes`` replace keys of it. InputError names the key that is wrong."""
        return cls.from_mapping({**read_yaml(path), **changes}, str(path))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "sweep") -> SweepConfig:
        """From the keys of a sweep file; paths are taken as seen from the working directory."""
        where = f"sweep {source!r}"
        check_keys(values, _KEYS, where)
        if not isinstance(values.get("out"), str):
            raise InputError(f"{where}: out is {values.get('out')!r}; it must name the folder of the sweep")
        protocol = None if values.get("protocol") is None else load_protocol(values["protocol"])
        tasks = _tasks(values, protocol, where)
        selection = mapping(values.get("selection"), f"{where}: selection")
        check_keys(selection, ("seeds",), f"{where}: selection")
        seeds = _seeds(values.get("seeds", [0]), f"{where}: seeds")
        named = {key: values[key] for key in ("model", "weights") if values.get(key) is not None}
        return cls(
            out=Path(values["out"]).absolute(),
            rows=_rows(values, protocol, where),
            tasks=tasks,
            seeds=seeds,
            selection_seeds=_seeds(selection.get("seeds", [seeds[0]]), f"{where}: selection: seeds"),
            fit={**named, **fit_settings(values.get("fit"), f"{where}: fit")},
            ray=RayOptions.read(values.get("ray"), f"{where}: ray"),
            protocol=protocol,
            values={**values, "out": str(Path(values["out"]).absolute())},
        )


def _tasks(values: Mapping[str, Any], protocol: Protocol | None, where: str) -> tuple[Task, ...]:
    if (protocol is None) == (values.get("tasks") is None):
        raise InputError(f"{where} needs either protocol: NAME or tasks: {{NAME: {{data: ...}}}}, and not both")
    own = read_tasks(values["tasks"], str(values.get("metric", "top1")), where) if protocol is None else protocol.tasks
    only = values.get("only") or list(own)
    if not isinstance(only, list):
        raise InputError(f"{where}: only is {only!r}; it must be a list of tasks")
    for name in only:
        if name not in own:
            raise InputError(f"{where}: only: task {name!r} is unknown; {near(str(name), own)}")
    root = values.get("root")
    return tuple(own[name].at(None if root is None else str(root)) for name in dict.fromkeys(only))


def _rows(values: Mapping[str, Any], protocol: Protocol | None, where: str) -> tuple[Row, ...]:
    entries = values.get("methods")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{where}: methods is {entries!r}; it must be a list of methods ({', '.join(METHODS)})")
    common = None if values.get("grid") is None else read_grid(values["grid"], f"{where}: grid")
    rows: dict[str, Row] = {}
    for entry in entries:
        row = _row({"method": entry} if isinstance(entry, str) else entry, common, protocol, where)
        if row.name in rows:
            raise InputError(f"{where}: methods has two rows {row.name!r}: give one of them another name:")
        rows[row.name] = row
    return tuple(rows.values())


def _row(entry: Any, common: Grid | None, protocol: Protocol | None, where: str) -> Row:
    values = mapping(entry, f"{where}: methods")
    check_keys(values, [f.name for f in dataclasses.fields(Row)], f"{where}: methods")
    method = str(values.get("method", values.get("name")))
    get_method(method)
    name = str(values.get("name", method))
    place = f"{where}: methods: {name}"
    if "grid" in values:
        grid: Grid = read_grid(values["grid"], f"{place}: grid")
    else:
        grid = common if common is not None else protocol.grid(method) if protocol else {}
    known = [*(f for f in _FIT_FIELDS if f not in ("out", "data", "method", "seed", "validation", "test", "adapter"))]
    known += [prefix + key for key in adapter_fields(method) for prefix in ("", "adapter.")]
    for key in grid:
        if key not in known:
            raise InputError(
                f"{place}: grid: {key!r} is neither a setting of fit nor an adapter field of {method!r}; "
                + near(key, known)
            )
    adapter = mapping(values.get("adapter"), f"{place}: adapter")
    check_keys(adapter, adapter_fields(method), f"{place}: adapter")
    return Row(name, method, adapter, fit_settings(values.get("fit"), f"{place}: fit"), grid)


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(s) is int and s >= 0 for s in value):
        raise InputError(f"{where} is {value!r}; it must be a list of whole numbers of at least 0")
    return tuple(dict.fromkeys(value))
