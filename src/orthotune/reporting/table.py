"""A table of the papers' shape, as numbers: methods down, tasks across, mean and deviation over seeds in the cells."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orthotune.errors import InputError
from orthotune.methods import near
from orthotune.papers.results import PaperRow
from orthotune.reporting.cells import Cell, Column, by_seed, cell_of, marked_rows, mean_of
from orthotune.reporting.layout import Layout
from orthotune.reporting.runs import COSTS, Run, differing, label, order, require_key


@dataclass(frozen=True)
class Row:
    """A row: its name, the method it is of, its cells in the order of the columns, and the paper's row beside it."""

    name: str
    method: str
    cells: tuple[Cell, ...]
    paper: str | None = None


@dataclass(frozen=True)
class Table:
    """``notes`` are sentences that belong under the table: what the cells are and what is missing."""

    label: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    title: str = ""
    paper: str | None = None


def build_table(runs: Sequence[Run], layout: Layout | None = None) -> Table:
    """The table of ``runs`` that ``layout`` asks for.

    InputError if none of them was scored in the phase, a setting or metric is unknown, or a cell would average over
    runs that differ in more than their seed.
    """
    return _Builder(runs, layout or Layout()).table()


@dataclass
class _Line:
    """A row while it is made: samples by (column, metric), and all its runs."""

    first: Run
    runs: list[Run] = field(default_factory=list)
    samples: dict[tuple[str, str | None], dict[int, float]] = field(default_factory=dict)
    seen: dict[tuple[str, int], Run] = field(default_factory=dict)


class _Builder:
    def __init__(self, runs: Sequence[Run], layout: Layout) -> None:
        self.layout = layout
        of_phase = [run for run in runs if run.result.phase == layout.phase]
        self.failed = [run for run in of_phase if run.result.status == "failed"]
        self.runs = [run for run in of_phase if run.score() is not None]
        if not self.runs:
            raise InputError(self._why_none(runs))
        for key in (*layout.rows, layout.columns):
            require_key(self.runs, key, "--rows or --columns")
        if layout.paper and layout.columns != "task":
            raise InputError(f"--paper compares tasks: leave out --columns {layout.columns}")
        self.metrics: Sequence[str | None] = layout.metrics or (None,)
        self._check_metrics()
        self.lines = self._lines()
        self.keys = self._columns()

    def _why_none(self, runs: Sequence[Run]) -> str:
        other = "search" if self.layout.phase == "final" else "final"
        text = f"none of the {len(runs)} runs has a score of the {self.layout.phase} phase"
        if self.failed:
            text += f" ({len(self.failed)} failed)"
        return text + (f": try --phase {other}" if any(r.result.phase == other for r in runs) else "")

    def _check_metrics(self) -> None:
        for metric in self.layout.metrics:
            if all(run.score(metric) is None for run in self.runs):
                scores = [run.metrics.test or {} for run in self.runs if run.metrics]
                known = {k for test in scores for k, v in test.items() if isinstance(v, float)}
                raise InputError(f"--metric {metric!r} is no score of these runs; {near(metric, known)}")

    def _lines(self) -> dict[str, _Line]:
        lines: dict[str, _Line] = {}
        for run in sorted(self.runs, key=lambda r: order(r, self.layout.rows)):
            line = lines.setdefault(label(run, self.layout.rows), _Line(run))
            column, seed = label(run, (self.layout.columns,)), run.result.seed
            twin = line.seen.setdefault((column, seed), run)
            if twin is not run:
                raise InputError(_two(label(run, self.layout.rows), column, seed, differing([twin, run])))
            line.runs.append(run)
            for metric in self.metrics:
                score = run.score(metric)
                if score is not None:
                    line.samples.setdefault((column, metric), {})[seed] = score
        return lines

    def _columns(self) -> list[str]:
        """The columns: as the groups have them, then the others."""
        key = (self.layout.columns,)
        found = dict.fromkeys(label(run, key) for run in sorted(self.runs, key=lambda run: order(run, key)))
        grouped = [key for members in self.layout.groups.values() for key in members if key in found]
        return [*grouped, *(key for key in found if key not in grouped)]

    def table(self) -> Table:
        columns: list[Column] = []
        cells: dict[str, list[Cell]] = {name: [] for name in self.lines}

        def add(column: Column, make: list[Cell]) -> None:
            columns.append(column)
            for name, cell in zip(self.lines, make, strict=True):
                cells[name].append(cell)

        several = len(self.metrics) > 1
        decimals = self.layout.decimals
        for metric in self.metrics:
            suffix = f" {metric}" if several else ""
            for group, members in self._groups():
                for key in members:
                    if key in self.keys:
                        add(Column(key + suffix, "task", group, decimals), self._tasks(key, metric))
                if group:
                    add(Column(group + suffix, "mean", group, decimals), self._means(members, metric, group))
            if len(self.keys) > 1 and self.layout.mean != "none" and not self._one_group():
                add(Column("mean" + suffix, "mean", "", decimals), self._overall(metric))
        for cost in self.layout.costs:
            title, digits = COSTS[cost]
            add(Column(title, "cost", "", digits), [self._cost(line, cost) for line in self.lines.values()])
        marked = marked_rows(columns, list(cells.values()))
        rows = tuple(
            Row(name, line.first.result.method, tuple(own), self._paper_name(name, columns, own))
            for (name, line), own in zip(self.lines.items(), marked, strict=True)
        )
        paper = self.layout.paper.source if self.layout.paper else None
        return Table(
            ", ".join(self.layout.rows).replace("name", "method"),
            tuple(columns),
            rows,
            tuple(self._notes(rows)),
            self.layout.title,
            paper,
        )

    def _groups(self) -> list[tuple[str, Sequence[str]]]:
        """(group, all its members) that have a column here, and the columns without a group."""
        groups = [(g, members) for g, members in self.layout.groups.items() if set(members) & set(self.keys)]
        rest = [key for key in self.keys if not any(key in members for _, members in groups)]
        return [*groups, ("", rest)]

    def _one_group(self) -> bool:
        """Whether a group's mean is already that over all columns."""
        return any(set(members) == set(self.keys) for members in self.layout.groups.values())

    def _tasks(self, key: str, metric: str | None) -> list[Cell]:
        found = []
        for name, line in self.lines.items():
            row = self._paper_row(name)
            paper = row.value(key, metric or _metric(line, key)) if row else None
            found.append(replace(cell_of(line.samples.get((key, metric), {})), paper=paper))
        return found

    def _means(self, members: Sequence[str], metric: str | None, printed: str) -> list[Cell]:
        found = []
        for name, line in self.lines.items():
            row = self._paper_row(name)
            cell = mean_of([line.samples.get((key, metric), {}) for key in members], self.layout.partial)
            found.append(replace(cell, paper=row.mean(members, printed) if row else None))
        return found

    def _overall(self, metric: str | None) -> list[Cell]:
        groups = [(group, members) for group, members in self.layout.groups.items() if members]
        wanted = list(dict.fromkeys([key for _, members in groups for key in members] + self.keys))
        if self.layout.mean == "tasks" or not groups:
            return self._means(wanted, metric, "mean")
        found = []
        for name, line in self.lines.items():
            means = [by_seed([line.samples.get((key, metric), {}) for key in members]) for _, members in groups]
            row = self._paper_row(name)
            papers = [row.mean(members, group) for group, members in groups] if row else []
            known = [value for value in papers if value is not None]
            cell = mean_of(means, self.layout.partial)
            paper = sum(known) / len(known) if known and len(known) == len(groups) else None
            found.append(replace(cell, paper=paper))
        return found

    def _cost(self, line: _Line, cost: str) -> Cell:
        values = [value for run in line.runs if (value := run.cost(cost)) is not None]
        row = self._paper_row(label(line.first, self.layout.rows))
        paper = row.value("parameters") if row and cost == "parameters" else None
        return Cell(statistics.fmean(values) if values else None, None, len(values), paper=paper)

    def _paper_row(self, name: str) -> PaperRow | None:
        return self.layout.paper.find(name) if self.layout.paper else None

    def _paper_name(self, name: str, columns: Sequence[Column], cells: Sequence[Cell]) -> str | None:
        """What the paper calls the row, None where it has no score to compare."""
        row = self._paper_row(name)
        pairs = zip(columns, cells, strict=True)
        return row.name if row and any(c.paper is not None for k, c in pairs if k.kind != "cost") else None

    def _notes(self, rows: Sequence[Row]) -> list[str]:
        seeds = {len(samples) for line in self.lines.values() for samples in line.samples.values()}
        what = "test scores" if self.layout.phase == "final" else "validation scores"
        least, most = min(seeds), max(seeds)
        over = "one seed" if most == 1 else f"{most} seeds" if least == most else f"{least} to {most} seeds"
        spread = "" if most == 1 else "mean and standard deviation over "
        notes = [f"{what[0].upper()}{what[1:]} in per cent: {spread}{over}."]
        missing = sum(cell.mean is None for row in rows for cell in row.cells)
        if missing:
            notes.append(f"\N{EN DASH} ({missing}): not run, not finished, or a mean of which a part is missing.")
        if any(cell.of and not cell.complete and cell.mean is not None for row in rows for cell in row.cells):
            notes.append("(n/m): the mean over n of m only; not comparable with the others.")
        if self.failed:
            notes.append("1 run failed." if len(self.failed) == 1 else f"{len(self.failed)} runs failed.")
        return notes + (self._paper_notes(rows) if self.layout.paper else [])

    def _paper_notes(self, rows: Sequence[Row]) -> list[str]:
        table = self.layout.paper
        assert table is not None
        models = sorted({str(run.value("model")) for run in self.runs})
        pretrained = f" ({table.pretraining})" if table.pretraining else ""
        notes = [f"Paper: {table.source}, {table.backbone}{pretrained}; these runs: {', '.join(models)}."]
        notes.append("The paper's means are computed from its tasks, where it gives them, as ours are.")
        for row in rows:
            twins = table.rows_of(row.name)
            if row.paper is None and len(twins) > 1:
                names = " and ".join(twin.name for twin in twins)
                notes.append(f"{row.name}: the paper has {names}; a row of that name would be compared.")
        alone = [row.name for row in rows if row.paper is None]
        if alone:
            notes.append(f"Not compared: {', '.join(alone)}.")
        return notes


def _metric(line: _Line, key: str) -> str | None:
    """The metric of the run's own score on a task."""
    return next((run.result.metric for run in line.runs if run.result.task == key), None)


def _two(row: str, column: str, seed: int, settings: Sequence[str]) -> str:
    text = f"{row} on {column} has two runs with seed {seed}"
    if not settings:
        return f"{text} and the same settings: give each run once"
    names = ", ".join(settings[:4])
    return f"{text}, which differ in {names}: add {settings[0]} to --rows, or keep some of the runs with --where"
