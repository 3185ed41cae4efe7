"""The report's plots of what ``orthotune inspect`` measured: angles, spectra, how far each layer moved."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orthotune.errors import InputError
from orthotune.reporting.panels import Choice, Panel, axis, options, plain, rounded, trace, whole
from orthotune.training.files import TEMPORARY

FILE = "analysis.json"
EVERY = "all layers"
#: Points of a spectrum; of a longer one so many are drawn, evenly.
POINTS = 200

#: An analysis: its layers as in analysis.json.
Layers = Sequence[Mapping[str, Any]]


def load_analyses(folders: Sequence[str]) -> dict[str, Layers]:
    """The layers of every analysis.json below the folders, by the folder it lies in; InputError for a broken one."""
    found = {}
    for path in dict.fromkeys(path for folder in folders for path in _files(Path(folder))):
        try:
            layers = json.loads(path.read_text())["layers"]
            found[str(path.parent)] = [layer for layer in layers if layer["weight"] or layer["projections"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} is not the analysis.json of orthotune inspect: {error!r}") from error
    return {name: layers for name, layers in _short(found).items() if layers}


def has_analysis(folder: str) -> bool:
    """Whether there is an analysis.json below the folder."""
    return next(_files(Path(folder)), None) is not None


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(TEMPORARY))
        if FILE in files:
            yield (Path(root) / FILE).resolve()


def _short(found: Mapping[str, Layers]) -> dict[str, Layers]:
    """Without the part of the path that all have."""
    common = os.path.commonpath(list(found)) if len(found) > 1 else ""
    return {os.path.relpath(name, common) if common else Path(name).name: own for name, own in found.items()}


def analysis_panels(analyses: Mapping[str, Layers]) -> list[Panel]:
    """The plots of the analyses, those that have something to show."""
    return [panel for make in (angles, spectra, movement) if (panel := make(analyses)) is not None]


def _matrices(layer: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    own = {"pre-trained weight": layer["weight"], "adapted weight": layer["adapted"]}
    own |= {f"projection {name}": matrix for name, matrix in layer["projections"].items()}
    return {name: matrix for name, matrix in own.items() if matrix}


def angles(analyses: Mapping[str, Layers]) -> Panel | None:
    """Histograms of the angles between rows, and between columns: of the weights and of the adapter's projections."""
    traces: list[dict[str, Any]] = []
    kinds: dict[str, None] = {}
    for analysis, layers in analyses.items():
        sums: dict[tuple[str, str, str], list[int]] = {}
        for layer in layers:
            for name, matrix in _matrices(layer).items():
                for side in ("rows", "columns"):
                    for kind in (EVERY, layer["kind"]):
                        counts = matrix[side]["histogram"]
                        old = sums.get((name, side, kind), [0] * len(counts))
                        sums[name, side, kind] = [a + b for a, b in zip(old, counts, strict=True)]
        for (name, side, kind), counts in sums.items():
            if not sum(counts):
                continue
            kinds[kind] = None
            width = 180 / len(counts)
            shown = {"analysis": analysis, "side": side, "kind": kind}
            share = rounded(100 * count / sum(counts) / width for count in counts)
            hover = f"{plain(name)}<br>%{{x}}°: %{{y:.3g}} %<extra></extra>"
            x = [width * (i + 0.5) for i in range(len(counts))]
            traces.append(trace(name, shown, "series", x=x, y=share, mode="lines", hovertemplate=hover))
    if not traces:
        return None
    return Panel(
        "angles",
        "Angles",
        "How the angles between all pairs of rows (columns) of a matrix are distributed; 90° is orthogonal.",
        [
            Choice("analysis", "Run", options(analyses, {name: name for name in analyses})),
            Choice("side", "Between", {"rows": "rows", "columns": "columns"}),
            Choice("kind", "Layers", options(kinds, {kind: kind for kind in kinds})),
        ],
        traces,
        {"xaxis": axis("angle (°)", range=[0, 180], dtick=30), "yaxis": axis("pairs (% a degree)", rangemode="tozero")},
        legend=True,
    )


def spectra(analyses: Mapping[str, Layers]) -> Panel | None:
    """Singular values of each layer, before and after."""
    traces: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for analysis, layers in analyses.items():
        for layer in layers:
            for name, matrix in _matrices(layer).items():
                values = matrix["singular_values"]
                chosen = sorted({round(i * (len(values) - 1) / (POINTS - 1)) for i in range(POINTS)})
                shown = {"analysis": analysis, "layer": layer["name"]}
                y = rounded(values[i] or None for i in chosen)
                hover = f"{plain(name)}<br>%{{x}}: %{{y:.4g}}<extra></extra>"
                x = [i + 1 for i in chosen]
                traces.append(trace(name, shown, "series", x=x, y=y, mode="lines", hovertemplate=hover))
                names[layer["name"]] = None
    if not traces:
        return None
    return Panel(
        "spectra",
        "Spectra",
        "Singular values of a layer's weight before and after adaptation, and of the adapter's projections.",
        [
            Choice("analysis", "Run", options(analyses, {name: name for name in analyses})),
            Choice("layer", "Layer", options(names, {name: name for name in names})),
        ],
        traces,
        {"xaxis": axis("index"), "yaxis": axis("singular value", type="log", exponentformat="e", dtick=1)},
        legend=True,
    )  # fmt: skip


def movement(analyses: Mapping[str, Layers]) -> Panel | None:
    """How far the layers moved, by block."""
    quantities = {
        "relative": "relative distance ‖W* - W‖ / ‖W‖",
        "norm_part": "part by the rows' lengths",
        "angle_part": "part by their directions",
        "turn": "mean turn of a row (°)",
    }
    traces = []
    for analysis, layers in analyses.items():
        moved = [layer for layer in layers if layer["movement"] and layer["block"] is not None]
        for kind in dict.fromkeys(layer["kind"] for layer in moved):
            own = sorted((layer for layer in moved if layer["kind"] == kind), key=lambda layer: layer["block"])
            x = [layer["block"] for layer in own]
            for quantity in quantities:
                y = rounded(layer["movement"][quantity] for layer in own)
                shown = {"analysis": analysis, "quantity": quantity}
                hover = f"{plain(kind)}, block %{{x}}: %{{y:.3g}}<extra></extra>"
                traces.append(trace(kind, shown, "series", x=x, y=y, mode="lines+markers", hovertemplate=hover))
    if not traces:
        return None
    return Panel(
        "movement",
        "How far each layer moved",
        "A line a kind of layer. The squared distance is the sum of the squares of its two parts.",
        [
            Choice("analysis", "Run", options(analyses, {name: name for name in analyses})),
            Choice("quantity", "Show", quantities),
        ],
        traces,
        {"xaxis": axis("block", **whole([x for t in traces for x in t["x"]])), "yaxis": {"rangemode": "tozero"}},
        {f"quantity={key}": {"yaxis": axis(title)} for key, title in quantities.items()},
        legend=True,
    )
