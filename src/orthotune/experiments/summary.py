"""``table.md``: one line a row, one column a task, mean and deviation over the final runs' seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from orthotune.cli.tables import Rows
from orthotune.experiments.results import Result


def summary(results: Iterable[Result], rows: Sequence[str], tasks: Sequence[str]) -> tuple[list[str], Rows]:
    """(head, lines) in per cent; the mean over the tasks is that of rows which have all of them."""
    scores: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.phase == "final" and result.status == "finished" and result.score is not None:
            scores.setdefault((result.name, result.task), []).append(100 * result.score)
    lines: Rows = []
    for row in rows:
        found = [scores.get((row, task), []) for task in tasks]
        mean = f"{fmean(map(fmean, found)):.2f}" if all(found) else "-"
        lines.append([row, *map(_cell, found), mean])
    return ["method", *tasks, "mean"], lines


def _cell(scores: list[float]) -> str:
    if not scores:
        return "-"
    return f"{fmean(scores):.2f}" + (f" ± {stdev(scores):.2f}" if len(scores) > 1 else "")
