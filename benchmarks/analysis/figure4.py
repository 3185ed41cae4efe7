"""What is left of orthogonality when qGOFT's norms and angles are free or held, and under several penalties.

    orthotune sweep benchmarks/analysis/qgoft_figure4.yaml --root DATA --weights deit_tiny_patch16_224.safetensors
    python benchmarks/analysis/figure4.py runs/qgoft-figure4-small --out runs/figure4

Opens every final run of the sweep and measures the columns of each layer's R: their lengths, and the angles between
them. Writes figure4.json, table.md and figure4.png (accuracy, and the defect along training).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))

import comparing

from orthotune.analysis.angles import pair_angles
from orthotune.analysis.plots import BLUE, GREEN, GREY, ORANGE, new_figure, rendered
from orthotune.analysis.projections import projections
from orthotune.experiments.results import Result, load_results
from orthotune.training.config import read_yaml
from orthotune.training.files import write_bytes, write_json, write_text
from orthotune.training.run import open_run
from orthotune.tuners.goft import GOFTLayer

COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY, "#000000", "#AA4499")


def measure(result: Result, weights: str | None) -> dict[str, Any]:
    """Scores of one run, its curve's defects, and the columns of its rotations: extremes over all layers."""
    metrics = result.metrics()
    assert metrics is not None
    module = open_run(result.path, weights=weights).model.module
    layers = [m for m in module.modules() if isinstance(m, GOFTLayer)]
    columns = [found["rotation"].T.detach() for layer in layers if (found := projections(layer, "default"))]
    lengths = [length for c in columns for length in c.norm(dim=1).tolist()] or [1.0]
    angles = [pair_angles(c) for c in columns]
    return {
        "name": result.name,
        "seed": result.seed,
        "parameters": metrics.parameters["adapter"],
        "accuracy": result.score,
        "train_seconds": metrics.train_seconds,
        "defect": [entry["defect"] for entry in metrics.curve],
        "defect_mean": [entry["defect_mean"] for entry in metrics.curve],
        "shortest": min(lengths),
        "longest": max(lengths),
        "deviation": statistics.fmean(a.deviation or 0.0 for a in angles) if angles else 0.0,
        "largest_cosine": max((a.cosine or 0.0 for a in angles), default=0.0),
    }


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: means over seeds, extremes over seeds of lengths and cosines."""
    head = ["", "adapter parameters", "test accuracy, %", "defect at the end, largest", "mean"]
    head += ["lengths of R's columns", "deviation of their angles from 90°", "largest cosine"]
    lines = []
    for name, runs in rows.items():
        defect, mean = (statistics.fmean(run[key][-1] for run in runs) for key in ("defect", "defect_mean"))
        deviation = statistics.fmean(run["deviation"] for run in runs)
        shortest, longest = min(run["shortest"] for run in runs), max(run["longest"] for run in runs)
        cells = [name, f"{runs[0]['parameters']:,}", comparing.percent([run["accuracy"] for run in runs])]
        cells += [f"{defect:.2g}", f"{mean:.2g}", f"{shortest:.2f} to {longest:.2f}", f"{deviation:.2f}°"]
        lines.append([*cells, f"{max(run['largest_cosine'] for run in runs):.2f}"])
    return comparing.table(head, lines) + "\n"


def draw(rows: dict[str, list[dict[str, Any]]]) -> bytes:
    """Accuracy of each row with every seed's, and the largest defect after each epoch."""
    figure = new_figure(10, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    for i, (colour, (name, runs)) in enumerate(zip(COLOURS, rows.items(), strict=True)):
        scores = [100 * run["accuracy"] for run in runs]
        left.plot(scores, [i] * len(scores), "o", color=colour, alpha=0.5, markersize=4)
        left.plot(statistics.fmean(scores), i, "|", color=colour, markersize=16, markeredgewidth=2)
        curve = [statistics.fmean(values) for values in zip(*(run["defect"] for run in runs), strict=True)]
        if max(curve) > 1e-4:  # a rotation's is rounding alone
            right.plot(range(1, len(curve) + 1), curve, marker="o", markersize=4, color=colour, label=name)
    left.set_yticks(range(len(rows)), rows)
    left.invert_yaxis()
    left.set(xlabel="test accuracy, %: seeds and mean")
    right.set(xlabel="epoch", yscale="log", ylabel="max |R$^T$R - I| of the worst layer")
    right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25, which="both")
    return rendered(figure)


def main() -> None:
    """Measure, and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of the finished sweep")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--weights", help="the base weights, if they have moved")
    args = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    order = [entry["name"] for entry in read_yaml(args.sweep / "sweep.yaml")["methods"]]
    for result in load_results(args.sweep):
        if result.phase == "final" and result.status == "finished":
            rows.setdefault(result.name, []).append(measure(result, args.weights))
    rows = {name: rows[name] for name in order if name in rows}
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "figure4.json", [run for runs in rows.values() for run in runs])
    write_text(args.out / "table.md", table(rows))
    write_bytes(args.out / "figure4.png", draw(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
