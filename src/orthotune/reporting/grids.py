"""The report's plots of a search: score by setting, as lines and as heat maps of two settings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from orthotune.reporting.panels import Choice, Panel, axis, options, trace
from orthotune.reporting.runs import Run, differing

#: Score of a row on a task at a point of the grid: the mean over seeds.
Points = dict[tuple[tuple[str, float], ...], float]


def grid_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs that a search made; of plain runs, all."""
    search = [run for run in runs if run.result.phase == "search"]
    return [run for run in (search or runs) if run.score() is not None]


def _points(runs: Sequence[Run]) -> dict[tuple[str, str], Points]:
    """Points by (name, task), of the settings that are numbers and differ between the runs of a name."""
    found: dict[tuple[str, str], Points] = {}
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.result.name, []).append(run)
    for name, own in by_name.items():
        searched = list(dict.fromkeys(key for run in own for key in run.result.settings)) or differing(own)
        varied = [key for key in searched if len({str(run.value(key)) for run in own}) > 1]
        keys = [key for key in varied if all(_is_number(run.value(key)) for run in own)]
        scores: dict[tuple[str, Any], list[float]] = {}
        for run in own:
            point = tuple((key, float(run.value(key))) for key in keys)
            scores.setdefault((run.result.task, point), []).append(run.score() or 0.0)
        for (task, point), values in scores.items():
            if keys:
                found.setdefault((name, task), {})[point] = statistics.fmean(values)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def lines(runs: Sequence[Run]) -> Panel | None:
    """Score by each setting of the grid; where there are others, at their best."""
    traces: list[dict[str, Any]] = []
    tasks: dict[str, None] = {}
    keys: dict[str, None] = {}
    for (name, task), points in _points(grid_runs(runs)).items():
        for key in dict(next(iter(points))):
            best: dict[float, float] = {}
            for point, score in points.items():
                value = dict(point)[key]
                best[value] = max(score, best.get(value, score))
            tasks[task] = keys[key] = None
            x = sorted(best)
            hover = "<b>%{fullData.name}</b><br>%{x:.4g}: %{y:.1f} %<extra></extra>"
            traces.append(trace(name, {"task": task, "setting": key}, "line", x=x, y=[best[v] for v in x],
                                mode="lines+markers", hovertemplate=hover))  # fmt: skip
    if not traces:
        return None
    return Panel(
        "grid",
        "Score by setting",
        "Mean over seeds; where the grid has further settings, the best over them."
        + (" Scores of the search, on validation data." if grid_runs(runs)[0].result.phase == "search" else ""),
        [
            Choice("setting", "Setting", options(keys, {key: key for key in keys})),
            Choice("task", "Task", options(tasks)),
        ],
        traces,
        {"yaxis": axis("score (%)"), "hovermode": "closest"},
        {f"setting={key}": {"xaxis": axis(key, **_scale(traces, key))} for key in keys},
    )


def _scale(traces: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """A logarithmic axis for values of several magnitudes, such as learning rates."""
    values = [x for t in traces if t["meta"]["shown"]["setting"] == key for x in t["x"]]
    if min(values) > 0 and max(values) >= 8 * min(values):
        ticks = sorted(set(values))
        return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return {}


def heat(runs: Sequence[Run]) -> Panel | None:
    """Score over two settings of a row's grid."""
    traces: list[dict[str, Any]] = []
    tasks: dict[str, None] = {}
    pairs: dict[str, None] = {}
    names: dict[str, None] = {}
    for (name, task), points in _points(grid_runs(runs)).items():
        keys = list(dict(next(iter(points))))
        for across, down in combinations(keys, 2):
            best: dict[tuple[float, float], float] = {}
            for point, score in points.items():
                place = dict(point)[across], dict(point)[down]
                best[place] = max(score, best.get(place, score))
            x, y = (sorted({place[i] for place in best}) for i in (0, 1))
            pair = f"{across}, {down}"
            tasks[task] = pairs[pair] = names[name] = None
            cells = [[best.get((a, b)) for a in x] for b in y]
            labels = [["" if v is None else f"{v:.1f}" for v in row] for row in cells]
            shown = {"task": task, "pair": pair, "row": name}
            traces.append(trace("", shown, "heat") | {
                "type": "heatmap", "x": [f"{v:g}" for v in x], "y": [f"{v:g}" for v in y], "z": cells,
                "text": labels, "texttemplate": "%{text}", "colorscale": "Cividis", "xgap": 2, "ygap": 2,
                "hovertemplate": "%{x}, %{y}: %{z:.1f} %<extra></extra>",
                "colorbar": {"thickness": 10, "outlinewidth": 0},
            })  # fmt: skip
    if not traces:
        return None
    return Panel(
        "heat",
        "Score over two settings",
        "Mean over seeds; where the grid has further settings, the best over them.",
        [
            Choice("row", "Method", options(names, {name: name for name in names})),
            Choice("pair", "Settings", options(pairs, {pair: pair for pair in pairs})),
            Choice("task", "Task", options(tasks)),
        ],
        traces,
        {},
        {
            f"pair={pair}": {
                "xaxis": axis(pair.split(", ")[0], type="category"),
                "yaxis": axis(pair.split(", ")[1], type="category"),
            }
            for pair in pairs
        },
    )
