"""The cells of a table: means and deviations over seeds, means over columns, marks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

#: Score by seed.
Samples = Mapping[int, float]


@dataclass(frozen=True)
class Cell:
    """A score in per cent (or a cost): mean and sample deviation over ``runs`` seeds; ``mean`` None: missing.

    ``of`` is (present, wanted) where it is a mean over columns. ``mark`` says that it is the best, or the second, of
    its column as printed. ``paper`` is what the paper has there.
    """

    mean: float | None = None
    deviation: float | None = None
    runs: int = 0
    of: tuple[int, int] | None = None
    mark: Literal["", "best", "second"] = ""
    paper: float | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing of it is missing."""
        return self.mean is not None and (self.of is None or self.of[0] == self.of[1])

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None where either is missing or ours is not complete."""
        return self.mean - self.paper if self.complete and self.mean is not None and self.paper is not None else None


@dataclass(frozen=True)
class Column:
    """A column: a task (with the metric, where several are shown), a mean over tasks, or a cost."""

    title: str
    kind: Literal["task", "mean", "cost"]
    group: str = ""
    decimals: int = 1


def cell_of(samples: Samples) -> Cell:
    """The mean over seeds, and the sample deviation where there are two or more."""
    values = list(samples.values())
    if not values:
        return Cell()
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def by_seed(parts: Sequence[Samples]) -> dict[int, float]:
    """The mean over ``parts`` for each seed that all of them have."""
    seeds = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {seed: statistics.fmean(part[seed] for part in parts) for seed in sorted(seeds)}


def mean_of(parts: Sequence[Samples], partial: bool) -> Cell:
    """The mean over columns. Its deviation is that of the mean at each seed, given if all have the same seeds."""
    present = [part for part in parts if part]
    of = (len(present), len(parts))
    if not present or (len(present) < len(parts) and not partial):
        return Cell(of=of)
    mean = statistics.fmean(statistics.fmean(part.values()) for part in present)
    seeds = by_seed(present)
    same = all(set(part) == set(seeds) for part in present)
    deviation = statistics.stdev(seeds.values()) if same and len(seeds) > 1 else None
    return Cell(mean, deviation, len(seeds) if same else 0, of)


def marked_rows(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Mark the best and the second of each column of scores, as printed; ties share a mark."""
    result = [list(row) for row in rows]
    for i, column in enumerate(columns):
        if column.kind == "cost":
            continue
        printed = [
            round(cell.mean, column.decimals) if cell.complete and cell.mean is not None else None
            for cell in (row[i] for row in result)
        ]
        ranks = sorted({value for value in printed if value is not None}, reverse=True)
        for row, value in zip(result, printed, strict=True):
            if value is not None and len(rows) > 1 and value in ranks[:2]:
                row[i] = replace(row[i], mark="best" if value == ranks[0] else "second")
    return result
