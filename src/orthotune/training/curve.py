"""The picture of a learning curve."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from orthotune.training.files import write_bytes


def draw_curve(
    path: Path, curve: list[dict[str, float]], best: dict[str, Any], title: str, metric: str = "accuracy"
) -> None:
    """Write a PNG with the loss and the metric (per cent) of each epoch, and the epoch that was kept."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, score = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in curve]
    marker = "o" if len(epochs) == 1 else None
    for axes, key, factor in ((loss, "loss", 1), (score, metric, 100)):
        for part, name in (("train", "train (running mean)"), ("val", "validation")):
            if f"{part}_{key}" in curve[0]:
                values = [factor * entry[f"{part}_{key}"] for entry in curve]
                axes.plot(epochs, values, label=name, marker=marker)
        axes.axvline(best["epoch"], color="grey", linestyle=":", label=f"kept: epoch {best['epoch']}")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    loss.set_ylabel("loss (in training with the penalty)")
    score.set_ylabel(f"{metric.replace('_', ' ')} (%)")
    score.legend()
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
