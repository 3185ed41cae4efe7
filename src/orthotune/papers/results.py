"""The scores that the papers print, row by row, to set beside ours.

``results.csv`` is tidy: one line a cell of a paper's table, in the paper's unit (per cent, or millions for the task
``parameters``). ``task`` is the task's name in our protocols, or ``natural``, ``specialized``, ``structured``, ``mean``
for a mean that the paper prints. ``method`` is the registry's name of the row's method, empty where it has none.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources

from orthotune.errors import InputError
from orthotune.methods import near

#: Names of tasks in the copies of the benchmarks that people have, and the papers' names of them.
ALIASES = {
    "cifar": "cifar100",
    "oxford_flowers102": "flowers102",
    "oxford_iiit_pet": "pets",
    "patch_camelyon": "camelyon",
    "diabetic_retinopathy": "retinopathy",
    "kitti": "kitti_dist",
    "smallnorb_azi": "snorb_azim",
    "smallnorb_ele": "snorb_ele",
    "cub_200_2011": "cub200",
    "oxfordflower": "flowers102",
    "stanford-dogs": "stanford_dogs",
    "stanford-cars": "stanford_cars",
    "sst-2": "sst2",
    "sts-b": "stsb",
}


def paper_task(task: str) -> str:
    """The papers' name of a task of this name."""
    return ALIASES.get(task.lower(), task.lower())


@dataclass(frozen=True)
class PaperRow:
    """One row of a paper's table: ``cells[task]`` is ``{metric: value}``."""

    name: str
    method: str
    cells: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def value(self, task: str, metric: str | None = None) -> float | None:
        """What the paper prints for a task; for one that it scores in two ways the metric must be given."""
        scores = self.cells.get(paper_task(task), {})
        if metric is not None and metric in scores:
            return scores[metric]
        return next(iter(scores.values())) if len(scores) == 1 else None

    def mean(self, tasks: Sequence[str], printed: str | None = None) -> float | None:
        """The mean over ``tasks``, or, where the table does not have them all, what it prints under ``printed``.

        The papers' own means are not all of one kind (RLRR's is over the 19 tasks of VTAB-1k, qGOFT's over its three
        groups), and some are not the mean of the numbers beside them, so what can be computed is.
        """
        values = [self.value(task) for task in tasks]
        known = [value for value in values if value is not None]
        if tasks and len(known) == len(tasks):
            return sum(known) / len(known)
        return None if printed is None else self.value(printed)


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper."""

    name: str
    source: str
    backbone: str
    pretraining: str
    rows: tuple[PaperRow, ...]

    def find(self, name: str) -> PaperRow | None:
        """The row that the paper calls ``name``, or else its only row of the method of the registry with this name."""
        for row in self.rows:
            if row.name.casefold() == name.casefold():
                return row
        rows = self.rows_of(name)
        return rows[0] if len(rows) == 1 else None

    def rows_of(self, method: str) -> list[PaperRow]:
        """All rows of a method of the registry."""
        return [row for row in self.rows if row.method and row.method == method]


@lru_cache
def paper_tables() -> Mapping[str, PaperTable]:
    """All tables, by name."""
    text = resources.files("orthotune.papers").joinpath("results.csv").read_text(encoding="utf-8")
    return {table.name: table for table in _tables(csv.DictReader(text.splitlines()))}


def _tables(lines: Iterable[Mapping[str, str]]) -> Iterable[PaperTable]:
    facts: dict[str, Mapping[str, str]] = {}
    cells: dict[str, dict[tuple[str, str], dict[str, dict[str, float]]]] = {}
    for line in lines:
        facts[line["table"]] = line
        row = cells.setdefault(line["table"], {}).setdefault((line["row"], line["method"]), {})
        row.setdefault(line["task"], {})[line["metric"]] = float(line["value"])
    for name, rows in cells.items():
        about = facts[name]
        found = tuple(PaperRow(row, method, values) for (row, method), values in rows.items())
        yield PaperTable(name, about["source"], about["backbone"], about["pretraining"], found)


def paper_table(name: str) -> PaperTable:
    """The table of this name, or an InputError with near names."""
    tables = paper_tables()
    if name not in tables:
        raise InputError(f"paper table {name!r} is unknown; {near(name, tables)}")
    return tables[name]
