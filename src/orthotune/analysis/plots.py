"""The pictures of an analysis: angles, spectra, movement by layer, CKA."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orthotune.analysis.angles import BINS, Angles
from orthotune.analysis.inspection import Analysis, LayerAnalysis
from orthotune.analysis.matrices import Matrix

#: Of Okabe and Ito, which people with colour blindness tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "orthotune"}


def draw(analysis: Analysis, form: str = "png") -> dict[str, bytes]:
    """Return the pictures that the analysis has something for, by name, as PNG or SVG."""
    pictures = {"angles": angle_histograms, "spectra": spectra, "movement": movement, "cka": cka}
    figures = {name: make(analysis) for name, make in pictures.items()}
    return {name: rendered(figure, form) for name, figure in figures.items() if figure is not None}


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: Any, form: str = "png") -> bytes:
    """Return the figure as a file's contents; the same for the same figure."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def matrices_of(layers: Sequence[LayerAnalysis]) -> dict[str, list[Matrix]]:
    """Return the matrices of the layers by what they are: weight, projections, adapted."""
    found: dict[str, list[Matrix]] = {}
    for layer in layers:
        for name, matrix in (("weight", layer.weight), *layer.projections.items(), ("adapted", layer.adapted)):
            if matrix is not None:
                found.setdefault(name, []).append(matrix)
    return dict(sorted(found.items(), key=lambda item: (item[0] == "adapted") - (item[0] == "weight")))


def pooled(parts: Sequence[Angles]) -> tuple[np.ndarray, float | None, float | None]:
    """Return the mean over matrices of their histograms (density per degree), and of mean and deviation.

    Every matrix that has angles counts alike, whatever its size.
    """
    measured = [a for a in parts if a.pairs]
    if not measured:
        return np.zeros(BINS), None, None
    density = np.mean([np.array(a.histogram) / a.pairs for a in measured], axis=0)
    return density, *(statistics.fmean(getattr(a, key) for a in measured) for key in ("mean", "deviation"))


def histogram(axes: Any, matrices: Sequence[Matrix], title: str) -> None:
    """Draw the angles between rows and between columns of some matrices, all matrices weighted alike."""
    centres = np.arange(BINS) + 0.5
    highest = 0.0
    for side, colour in (("rows", BLUE), ("columns", ORANGE)):
        density, mean, deviation = pooled([getattr(matrix, side) for matrix in matrices])
        if mean is None:
            continue
        axes.fill_between(centres, density, step="mid", alpha=0.25, color=colour, linewidth=0)
        label = f"{side}: {mean:.1f}° ± {deviation:.1f}°"
        axes.step(centres, density, where="mid", color=colour, linewidth=1.1, label=label)
        highest = max(highest, density.max())
    axes.axvline(90, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(title=title, xlim=(0, 180), xticks=[0, 45, 90, 135, 180], xlabel="angle (degrees)")
    # one narrow peak must not flatten what is beside it
    axes.set_ylim(0, min(1.35 * highest, 0.3) or 1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if highest:
        axes.legend(frameon=False, fontsize=8, loc="upper left", borderaxespad=0.1)


def angle_histograms(analysis: Analysis) -> Any:
    """Draw one panel for the weights, for each of the adapter's matrices, and for the adapted weights."""
    found = matrices_of(analysis.layers)
    names = {"weight": "pre-trained weight", "adapted": "adapted weight"}
    figure = new_figure(3.1 * max(len(found), 2), 2.9)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, matrices) in zip(panels, found.items(), strict=True):
        histogram(axes, matrices, names.get(name, name))
    panels[0].set_ylabel("share of pairs per degree")
    return figure


def spectra(analysis: Analysis) -> Any:
    """Draw the singular values before and after and those of the change, by kind: the median over blocks."""
    kinds: dict[str, list[LayerAnalysis]] = {}
    for layer in analysis.layers:
        if layer.weight is not None:
            kinds.setdefault(layer.kind, []).append(layer)
    if any(layer.adapted for layer in analysis.layers):
        kinds = {kind: layers for kind, layers in kinds.items() if any(layer.adapted for layer in layers)}
    if not kinds:
        return None
    labels = _short(list(kinds))
    columns = min(len(kinds), 3)
    rows = -(-len(kinds) // columns)
    figure = new_figure(3 * columns, 2.5 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (kind, layers) in zip(grid, kinds.items(), strict=False):
        series = {
            "before": ([x.weight.singular_values for x in layers if x.weight], BLUE, "-", 2.4),
            "after": ([x.adapted.singular_values for x in layers if x.adapted], ORANGE, "--", 1.2),
            "change": ([x.movement.singular_values for x in layers if x.movement], GREEN, "-", 1.2),
        }
        for name, (values, colour, line, width) in series.items():
            if any(values):
                median = _median(values)
                index = range(1, len(median) + 1)
                few = len(median) < 12
                axes.plot(index, median, line, color=colour, label=name, linewidth=width, marker="." if few else None)
        axes.set(yscale="log", title=labels[kind])
        axes.grid(alpha=0.25)
    for axes in grid[len(kinds) :]:
        axes.set_visible(False)
    grid[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("index", fontsize=9)
    figure.supylabel("singular value, median over blocks", fontsize=9)
    return figure


def movement(analysis: Analysis) -> Any:
    """Draw heat maps over kinds and blocks: how far each weight moved, and how much of that was turning."""
    layers = [layer for layer in analysis.layers if layer.movement is not None]
    if not layers:
        return None
    blocks = sorted({layer.block for layer in layers}, key=lambda b: (b is None, b))
    labels = _short(list(dict.fromkeys(layer.kind for layer in layers)))
    kinds = list(labels)
    moved, turning = (np.full((len(kinds), len(blocks)), np.nan) for _ in range(2))
    for layer in layers:
        where = kinds.index(layer.kind), blocks.index(layer.block)
        m = layer.movement
        if m is not None:
            moved[where] = 100 * m.relative
            turning[where] = 100 * m.angle_part**2 / m.relative**2 if m.relative else np.nan
    figure = new_figure(max(3.5, 1.2 + 0.42 * len(blocks)) * 2, 1.3 + 0.36 * len(kinds))
    titles = "distance from the pre-trained weight, %", "share of turning in its square, %"
    for axes, values, title, colours in zip(
        figure.subplots(1, 2), (moved, turning), titles, ("viridis", "cividis"), strict=True
    ):
        _heat_map(axes, values, title, colours, 100 if values is turning else None)
        axes.set_xticks(range(len(blocks)), ["-" if b is None else str(b) for b in blocks])
        axes.set_yticks(range(len(kinds)), [labels[kind] for kind in kinds])
        axes.set_xlabel("block")
    return figure


def cka(analysis: Analysis) -> Any:
    """Draw the similarity of the features after each block, before and after adaptation."""
    if analysis.cka is None:
        return None
    values = np.array(analysis.cka.values)
    size = 1.6 + 0.36 * len(values)
    figure = new_figure(size + 0.7, size)
    axes = figure.subplots()
    same = analysis.settings["adapter"] is None and not any(layer.adapted for layer in analysis.layers)
    _heat_map(axes, values, f"linear CKA, {analysis.cka.samples} samples", "magma", 1.0, digits=2)
    ticks = [name.rpartition(".")[2] for name in analysis.cka.blocks]
    axes.set_xticks(range(len(values)), ticks)
    axes.set_yticks(range(len(values)), ticks)
    axes.set(xlabel="block" if same else "block, adapted", ylabel="block" if same else "block, pre-trained")
    axes.invert_yaxis()
    return figure


def _heat_map(axes: Any, values: np.ndarray, title: str, colours: str, top: float | None, digits: int = 0) -> None:
    highest = top or float(np.nanmax(values)) or 1.0
    image = axes.imshow(values, cmap=colours, vmin=0, vmax=highest, aspect="auto")
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    axes.set_title(title)
    if values.size > 400:
        return
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            shade = "black" if value > 0.6 * highest else "white"
            text = f"{value:.{digits}f}" if digits or value >= 10 else f"{value:.1f}"
            axes.text(j, i, text.removeprefix("0") if digits else text, ha="center", va="center", color=shade, size=6.5)


def _median(series: Sequence[Sequence[float]]) -> list[float]:
    """Return the median of each entry, as far as the longest series goes."""
    longest = max(map(len, series))
    return [statistics.median(s[i] for s in series if len(s) > i) for i in range(longest)]


def _short(kinds: Sequence[str]) -> Mapping[str, str]:
    """Return labels of the kinds: without what all of them begin with, up to the block's index."""
    lists = {kind.partition("#.")[0] for kind in kinds}
    cut = len(lists.pop()) + 2 if len(lists) == 1 and all("#." in kind for kind in kinds) else 0
    return {kind: kind[cut:] for kind in kinds}
