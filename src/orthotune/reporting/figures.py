"""The report's plots of results: curves, costs, grids, seeds, orthogonality."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orthotune.reporting.panels import Choice, Panel, axis, logarithmic, options, plain, rounded, trace, whole
from orthotune.reporting.runs import Run

#: Runs by the name of their row, in the order of the rows.
Rows = Mapping[str, Sequence[Run]]

ALL = "all tasks"
_CURVES = {
    "val_accuracy": "validation accuracy (%)",
    "train_accuracy": "training accuracy (%)",
    "val_loss": "validation loss",
    "train_loss": "training loss",
    "lr": "learning rate",
}
_HOVER = "<b>%{fullData.name}</b><br>%{x}: %{y:.4g}<extra></extra>"


def curves(rows: Rows) -> Panel | None:
    """Learning curves: for each row the mean over seeds, and the range from the lowest to the highest."""
    return _curves(
        rows,
        "curves",
        "Learning curves",
        "Mean over seeds; with few methods shown, a band from the smallest to the largest. Training scores are running "
        "means of the epoch.",
        lambda key: key not in ("epoch", "seconds", "defect", "defect_mean"),
    )


def defect_curves(rows: Rows) -> Panel | None:
    """How far from orthogonal the adapters are along training, for methods that are meant to be."""
    panel = _curves(
        rows,
        "defect",
        "Orthogonality along training",
        "Largest and mean defect max |RᵀR - I| over the adapted layers; mean over seeds, with their range.",
        lambda key: key in ("defect", "defect_mean"),
    )
    if panel:
        for choice, patch in panel.axes.items():
            values = [y for t in panel.traces if choice == f"quantity={t['meta']['shown']['quantity']}" for y in t["y"]]
            patch["yaxis"] |= logarithmic([y for y in values if y])
    return panel


def _curves(rows: Rows, key: str, title: str, caption: str, wanted: Callable[[str], bool]) -> Panel | None:
    traces: list[dict[str, Any]] = []
    tasks: dict[str, None] = {}
    quantities: dict[str, None] = {}
    for name, runs in rows.items():
        by_task: dict[str, list[Run]] = {}
        for run in runs:
            if run.metrics and run.metrics.curve:
                by_task.setdefault(run.result.task, []).append(run)
        for task, own in by_task.items():
            found = [run.metrics.curve for run in own if run.metrics]
            for quantity in [q for q, v in found[0][0].items() if wanted(q) and isinstance(v, (int, float))]:
                shown = {"task": task, "quantity": quantity}
                traces += _curve(name, shown, found, quantity)
                tasks[task] = quantities[quantity] = None
    if not traces:
        return None
    ranked = sorted(quantities, key=lambda q: list(_CURVES).index(q) if q in _CURVES else len(_CURVES))
    titles = _CURVES | {"defect": "largest defect", "defect_mean": "mean defect"}
    return Panel(
        key,
        title,
        caption,
        [Choice("quantity", "Show", options(ranked, titles)), Choice("task", "Task", options(tasks))],
        traces,
        {"xaxis": axis("epoch", **whole([x for t in traces for x in t["x"]])), "hovermode": "closest"},
        {f"quantity={q}": {"yaxis": axis(titles.get(q, q.replace("_", " ")))} for q in ranked},
        wide=True,
    )


def _curve(
    name: str, shown: Mapping[str, str], curves: list[list[dict[str, float]]], quantity: str
) -> list[dict[str, Any]]:
    scale = 100 if quantity.endswith("accuracy") else 1
    by_epoch: dict[float, list[float]] = {}
    for curve in curves:
        for entry in curve:
            if entry.get(quantity) is not None:
                by_epoch.setdefault(entry["epoch"], []).append(scale * entry[quantity])
    epochs = sorted(by_epoch)
    means = rounded(statistics.fmean(by_epoch[epoch]) for epoch in epochs)
    line = trace(name, shown, "line", x=epochs, y=means, mode="lines+markers", hovertemplate=_HOVER)
    if len(curves) == 1:
        return [line]
    low, high = (rounded(part(by_epoch[epoch]) for epoch in epochs) for part in (min, max))
    edge = {"x": epochs + epochs[::-1], "y": high + low[::-1]}
    band = trace(name, shown, "band", **edge, mode="lines", fill="toself", hoverinfo="skip", line={"width": 0})
    return [band, line]


def task_scores(rows: Rows) -> dict[str, dict[str, list[float]]]:
    """Scores over seeds by task and row; over all tasks the mean at each seed, of the rows that have every task."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name, runs in rows.items():
        for run in runs:
            if (score := run.score()) is not None:
                found.setdefault(run.result.task, {}).setdefault(name, {})[run.result.seed] = score
    by_task = {task: {name: list(own.values()) for name, own in rows.items()} for task, rows in found.items()}
    if len(found) < 2:
        return by_task
    everywhere = {}
    for name in rows:
        parts = [found[task][name] for task in found if name in found[task]]
        if len(parts) == len(found):
            seeds = set.intersection(*(set(part) for part in parts))
            everywhere[name] = [statistics.fmean(part[seed] for part in parts) for seed in sorted(seeds)] or [
                statistics.fmean(statistics.fmean(part.values()) for part in parts)
            ]
    return {ALL: everywhere, **by_task}


def seeds(rows: Rows) -> Panel | None:
    """Every seed's score, and the mean."""
    traces: list[dict[str, Any]] = []
    tasks: dict[str, None] = {}
    for task, scores in task_scores(rows).items():
        tasks[task] = None
        for name, values in scores.items():
            traces += _strip(name, {"task": task}, values, "%{x:.1f} %")
    if not any(len(t["x"]) > 1 for t in traces):
        return None
    caption = "A point is a seed, the bar their mean: differences within the spread of the points say little."
    return Panel(
        "seeds",
        "Deviation over seeds",
        caption,
        [Choice("task", "Task", options(tasks))],
        traces,
        {"xaxis": axis("score (%)"), **_rows_axis(rows)},
    )


def final_defects(rows: Rows) -> Panel | None:
    """The orthogonality defect at the end of training."""
    traces: list[dict[str, Any]] = []
    tasks: dict[str, None] = {}
    for name, runs in rows.items():
        by_task: dict[str, list[float]] = {}
        for run in runs:
            if run.metrics and run.metrics.orthogonality_defect:
                by_task.setdefault(run.result.task, []).append(run.metrics.orthogonality_defect)
        for task, values in by_task.items():
            tasks[task] = None
            traces += _strip(name, {"task": task}, values, "%{x:.2e}")
    if not traces:
        return None
    shown = {name: rows[name] for name in rows if any(t["meta"]["method"] == name for t in traces)}
    caption = "Largest max |RᵀR - I| over the adapted layers of the trained adapters, a point a seed."
    return Panel(
        "final-defect",
        "Orthogonality at the end",
        caption,
        [Choice("task", "Task", options(tasks))],
        traces,
        {"xaxis": axis("defect", **logarithmic([x for t in traces for x in t["x"]])), **_rows_axis(shown)},
    )


def _strip(name: str, shown: Mapping[str, str], values: Sequence[float], form: str) -> list[dict[str, Any]]:
    hover = f"<b>%{{y}}</b><br>{form}<extra></extra>"
    label = [plain(name)]
    points = trace(name, shown, "point", x=rounded(values), y=label * len(values), mode="markers", hovertemplate=hover)
    mean = trace(
        name, shown, "mean", x=rounded([statistics.fmean(values)]), y=label, mode="markers", hovertemplate=hover
    )
    return [points, mean]


def _rows_axis(rows: Rows) -> dict[str, Any]:
    names = [plain(name) for name in rows]
    axes = {"type": "category", "categoryorder": "array", "categoryarray": names[::-1], "automargin": True}
    return {"yaxis": axes, "height": 110 + 26 * len(names)}
