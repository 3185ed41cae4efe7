"""The report's plots of scores against what they cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.reporting.figures import ALL, Rows, task_scores
from orthotune.reporting.panels import Choice, Panel, axis, logarithmic, options, plain, rounded, trace
from orthotune.reporting.runs import COSTS


def costs(rows: Rows, key: str, title: str, names: Sequence[str], caption: str) -> Panel | None:
    """Score against what it costs, and the front of the methods that no other beats in both."""
    traces: list[dict[str, Any]] = []
    tasks: dict[str, None] = {}
    used: dict[str, None] = {}
    for task, scores in task_scores(rows).items():
        for cost in names:
            points = []
            for name, values in scores.items():
                spent = [
                    v for run in rows[name] if task in (ALL, run.result.task) and (v := run.cost(cost)) is not None
                ]
                if spent and statistics.fmean(spent) > 0:
                    points.append((name, statistics.fmean(spent), values))
            if not points:
                continue
            shown = {"task": task, "cost": cost}
            tasks[task] = used[cost] = None
            best = front([(x, statistics.fmean(values)) for _, x, values in points])
            edge = sorted((points[i][1], statistics.fmean(points[i][2])) for i in best)
            traces.append(
                trace(
                    "",
                    shown,
                    "front",
                    x=rounded(x for x, _ in edge),
                    y=rounded(y for _, y in edge),
                    mode="lines",
                    line={"shape": "hv"},
                    hoverinfo="skip",
                )
            )
            places = _places([points[i] for i in best])
            traces += [_point(*point, shown, places.get(point[0])) for point in points]
    if not traces:
        return None
    return Panel(
        key,
        title,
        caption,
        [
            Choice("cost", "Against", options(used, {c: COSTS[c][0] for c in used})),
            Choice("task", "Task", options(tasks)),
        ],
        traces,
        {"yaxis": axis("score (%)"), "hovermode": "closest"},
        {f"cost={c}": {"xaxis": axis(COSTS[c][0], **logarithmic(_spent(traces, c), left=0.35))} for c in used},
    )


def _spent(traces: Sequence[Mapping[str, Any]], cost: str) -> list[float]:
    return [x for t in traces if t["meta"]["shown"]["cost"] == cost for x in t["x"]]


def _places(points: Sequence[tuple[str, float, Sequence[float]]]) -> dict[str, str]:
    """Where the names of the points on the front stand: above them, where no point can be, unless a name is there."""
    spots = sorted((math.log10(x), statistics.fmean(values), name) for name, x, values in points)
    wide = max(spots[-1][0] - spots[0][0], 0.3)
    high = max(spots[-1][1] - spots[0][1], 5.0)
    found: dict[str, str] = {}
    last: tuple[float, float] | None = None
    for x, y, name in spots:
        crowded = last is not None and x - last[0] < 0.35 * wide and y - last[1] < 0.1 * high
        found[name] = "bottom right" if crowded else "top left"
        last = last if crowded else (x, y)
    return found


def _point(name: str, x: float, values: Sequence[float], shown: Mapping[str, str], place: str | None) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return trace(
        name,
        shown,
        "best" if place else "point",
        x=rounded([x]),
        y=rounded([statistics.fmean(values)]),
        error_y={"type": "data", "array": rounded([spread]), "thickness": 1, "width": 0},
        mode="markers+text" if place else "markers",
        text=[plain(name)] if place else None,
        textposition=place,
        hovertemplate="<b>%{fullData.name}</b><br>%{y:.1f} % at %{x:.4g}<extra></extra>",
    )


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the (cost, score) points that no other beats: none is as cheap and as good, and better in one."""
    return {
        i
        for i, (cost, score) in enumerate(points)
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
    }
