"""The plots of a result: bars for layers and models, curves for scaling. Colours are Okabe and Ito's."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETRIGHT
from matplotlib.patches import Patch

FLOOR = "floor"
LORA = "lora"
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#E69F00", "#999999", "#009E73"
GROUP_COLOURS = {"orthotune": BLUE, "PEFT": GREY, "authors": GREEN}
SERIES = [BLUE, ORANGE, GREEN, "#CC79A7", "#D55E00", "#56B4E9", "#000000"]
MARKERS = "osD^vP"
SWEEPS = {
    "width": "width D",
    "tokens": "tokens",
    "rank": "bottleneck r",
    "depth": "adapted blocks",
    "rotation": "width D",
}
Value = tuple[float, list[float] | None] | None  # a bar: its length and quartiles
CUT = 2.5  # a bar this many times the median is cut
BESIDE: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
BESIDE["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # no line crosses a number


def draw(result: dict[str, Any], stem: Path) -> list[Path]:
    """Write ``<stem>_<section>.png`` of each section and return the paths."""
    paths = []
    for section, group in groupby(result["measurements"], key=lambda m: m["section"]):
        measurements = list(group)
        figure = _curves(measurements) if section == "scaling" else _bars(measurements)
        path = stem.with_name(f"{stem.name}_{section}.png")
        FigureCanvasAgg(figure).print_png(str(path))
        paths.append(path)
    return paths


def _bars(measurements: list[dict[str, Any]]) -> Figure:
    """Draw a column of panels per case: time, what is saved for the backward and, where it was measured, the peak."""
    names = _names(measurements)
    layers = measurements[0]["section"] == "layers"
    rows = [("time / floor", _time), ("saved for backward / input" if layers else "saved for backward / floor", _saved)]
    if any("peak_bytes" in m["results"][FLOOR] for m in measurements):
        rows.append(("peak memory / floor", _peak))
    size = (1.7 + 3.5 * len(measurements), 0.7 + len(rows) * (0.9 + 0.24 * len(names)))
    figure = Figure(size, dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), len(measurements), sharey=True, squeeze=False)
    for (heading, value_of), line in zip(rows, axes, strict=True):
        values = [{name: value_of(m, m["results"].get(name)) for name in names} for m in measurements]
        longest = _longest([value[0] for panel in values for value in panel.values() if value is not None])
        for measurement, panel, axis in zip(measurements, values, line, strict=True):
            _panel(axis, measurement, panel, longest)
            axis.set_xlabel(heading, fontsize=9)
    for axis, measurement in zip(axes[0], measurements, strict=True):
        axis.set_title(measurement["label"], fontsize=10)
    handles: list[Any] = [Patch(color=GROUP_COLOURS[group], label=group) for group in _groups(measurements, names)]
    if LORA in names:
        handles += [
            Patch(color=ORANGE, label="LoRA (PEFT)"),
            Line2D([], [], color=ORANGE, ls="--", label="LoRA's value"),
        ]
    handles.append(Line2D([], [], color="black", linewidth=1, label="1"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _names(measurements: list[dict[str, Any]]) -> list[str]:
    """Return the contestants by group, in each the quickest of the first case first."""
    found: dict[str, tuple[int, float]] = {}
    for measurement in measurements:
        for name, entry in measurement["contestants"].items():
            if name != FLOOR:
                ratio = measurement["results"].get(name, {}).get("ratio", float("inf"))
                found.setdefault(name, (list(GROUP_COLOURS).index(entry["group"]), ratio))
    return sorted(found, key=lambda name: found[name])


def _groups(measurements: list[dict[str, Any]], names: list[str]) -> list[str]:
    entries = {name: entry for m in measurements for name, entry in m["contestants"].items()}
    return list(dict.fromkeys(entries[name]["group"] for name in names if name != LORA))


def _time(measurement: dict[str, Any], result: dict[str, Any] | None) -> Value:
    return None if result is None else (result["ratio"], result["ratio_quartiles"])


def _saved(measurement: dict[str, Any], result: dict[str, Any] | None) -> Value:
    if result is None:
        return None
    layers = measurement["section"] == "layers"
    whole = result["input_bytes"] if layers else measurement["results"][FLOOR]["saved_bytes"]
    return result["saved_bytes"] / whole, None


def _peak(measurement: dict[str, Any], result: dict[str, Any] | None) -> Value:
    floor = measurement["results"][FLOOR].get("peak_bytes")
    if result is None or "peak_bytes" not in result or not floor:
        return None
    return result["peak_bytes"] / floor, None


def _longest(values: list[float]) -> float:
    """Return the longest bar to draw in full; those far longer than most are cut."""
    return max([1, *(value for value in values if value <= CUT * max(1, statistics.median(values)))])


def _panel(axis: Axes, measurement: dict[str, Any], values: dict[str, Value], longest: float) -> None:
    """Draw one bar per contestant, from the top. A bar that is cut has an arrow; its number stands all the same."""
    for position, (name, value) in enumerate(values.items()):
        if value is None:
            axis.annotate("skipped" if name in measurement["skipped"] else "not measured", (0, position), **BESIDE)
            continue
        number, spread = value
        length = min(number, 1.1 * longest)
        entry = measurement["contestants"][name]
        axis.barh(position, length, height=0.72, color=ORANGE if name == LORA else GROUP_COLOURS[entry["group"]])
        end = length
        if number > length:
            axis.plot([0.97 * length], [position], marker=CARETRIGHT, color="white", markersize=6)
        elif spread is not None:
            axis.plot(spread, [position, position], color="black", linewidth=1)
            end = max(length, spread[1])
        axis.annotate(f"{number:.2f}", (end, position), **BESIDE)
    axis.axvline(1, color="black", linewidth=1)
    lora = values.get(LORA)
    if lora is not None:
        axis.axvline(lora[0], color=ORANGE, linestyle="--", linewidth=1, zorder=0)
    labels = [measurement["contestants"][name]["label"] for name in values]
    axis.set_yticks(range(len(values)), labels, fontsize=9)
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.set_xlim(0, 1.32 * longest)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _curves(measurements: list[dict[str, Any]]) -> Figure:
    """Draw a panel per sweep: the ratio of each contestant, with its quartiles, over what grows."""
    sweeps = {sweep: list(group) for sweep, group in groupby(measurements, key=lambda m: m["sweep"])}
    columns = min(3, len(sweeps))
    rows = -(-len(sweeps) // columns)
    figure = Figure((1.0 + 3.6 * columns, 0.7 + 3.0 * rows), dpi=150, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    styles: dict[str, tuple[str, str]] = {}
    for axis, (sweep, group) in zip(axes, sweeps.items(), strict=False):
        for name in dict.fromkeys(series for m in group for series in _series(m)):
            results = [_series(m).get(name) for m in group]
            colour, marker = styles.setdefault(name, (SERIES[len(styles) % 7], MARKERS[len(styles) % 6]))
            points = [(m["value"], result) for m, result in zip(group, results, strict=True) if result is not None]
            x = [value for value, _ in points]
            spread = [result["ratio_quartiles"] for _, result in points]
            axis.plot(x, [result["ratio"] for _, result in points], color=colour, marker=marker, markersize=5)
            axis.fill_between(x, *zip(*spread, strict=True), color=colour, alpha=0.2, linewidth=0)
        _dress(axis, sweep, group)
    for axis in axes[len(sweeps) :]:
        axis.set_axis_off()
    handles = [Line2D([], [], color=colour, marker=marker, label=label) for label, (colour, marker) in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=9)
    return figure


def _series(measurement: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the results by the name of their curve: the label, without the bottleneck where that is clear."""
    labels = {name: measurement["contestants"][name]["label"] for name in measurement["results"] if name != FLOOR}
    short = {name: label.partition(" r=")[0] for name, label in labels.items()}
    counts = Counter(short.values())
    return {short[n] if counts[short[n]] == 1 else labels[n]: measurement["results"][n] for n in labels}


def _dress(axis: Axes, sweep: str, group: list[dict[str, Any]]) -> None:
    axis.set_title(group[0]["title"], fontsize=10)
    axis.axhline(1, color="black", linewidth=1)
    axis.set_ylim(bottom=min(0.9, axis.get_ylim()[0]))
    values = [m["value"] for m in group]
    if sweep != "depth":
        axis.set_xscale("log", base=2)
    axis.set_xticks(values, [str(value) for value in values])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(SWEEPS[sweep], fontsize=9)
    axis.set_ylabel("time / floor", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
