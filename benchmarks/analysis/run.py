"""AOFT's observation on real weights: angles in a pre-trained model, in LoRA's projections and in AOFT's.

    python benchmarks/analysis/run.py --model deit_tiny_patch16_224 --weights deit_tiny_patch16_224.safetensors \
        --data cifar10 --image-size 64 --out runs/analysis

Trains the runs of RUNS (finished ones are taken as they are), inspects each, and writes angles.json with the mean
numbers, table.md and angles.png (pre-trained weights, projections of LoRA and AOFT).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from orthotune.analysis import Analysis, inspect
from orthotune.analysis.angles import Angles
from orthotune.analysis.plots import histogram, matrices_of, new_figure, pooled, rendered
from orthotune.training import FitConfig, fit
from orthotune.training.files import write_bytes, write_json, write_text
from orthotune.training.run import open_run

EPOCHS = 10
RUNS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "aoft": {"method": "aoft"},
    "aoft-lr1e-3": {"method": "aoft", "lr": 1e-3},
    "rlrr": {"method": "rlrr"},
}
DRAWN = {"lora": "LoRA", "aoft": "AOFT, rate 0.01", "aoft-lr1e-3": "AOFT, rate 0.001"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="timm name or transformers model")
    parser.add_argument("--weights", required=True, help="state dict of the pre-trained model")
    parser.add_argument("--data", required=True, help="folder with train/ and test/")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    return parser.parse_args()


def train(args: argparse.Namespace, name: str) -> Any:
    """Run one fit, or return its result if it is finished."""
    settings = {"epochs": EPOCHS, **RUNS[name]}
    config = FitConfig(
        model=args.model,
        weights=args.weights,
        data=args.data,
        image_size=args.image_size,
        batch_size=32,
        validation="none",
        device="cpu",
        out=str(args.out / name),
        **settings,
    )
    return fit(config, resume=True)


def numbers(parts: list[Angles]) -> dict[str, float] | None:
    """Mean over matrices of the angles' mean, deviation, distance from 90, and of what chance gives."""
    measured = [part for part in parts if part.pairs]
    if not measured:
        return None
    keys = ("mean", "deviation", "from_right", "chance")
    return {key: statistics.fmean(getattr(part, key) for part in measured) for key in keys}


def summary(name: str, metrics: Any, analysis: Analysis) -> dict[str, Any]:
    """What the table and the page say of one run."""
    moved = [layer.movement for layer in analysis.layers if layer.movement]
    return {
        "run": name,
        "test_accuracy": metrics.test["top1"],
        "settings": {key: metrics.config[key] for key in ("method", "lr", "epochs", "adapter", "seed")},
        "parameters": metrics.parameters["adapter"],
        "angles": {
            key: {side: numbers([getattr(m, side) for m in found]) for side in ("rows", "columns")}
            for key, found in matrices_of(analysis.layers).items()
        },
        "relative_movement": statistics.fmean(m.relative for m in moved),
        "share_of_turning": statistics.fmean(m.angle_part**2 / m.relative**2 for m in moved if m.relative),
        "train_seconds": metrics.train_seconds,
        "versions": metrics.versions,
        "data_sha256": metrics.data["sha256"],
        "base_sha256": metrics.base_sha256,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: the angles of every run's matrices, and how far its weights moved."""
    lines = ["| run | matrix | rows | columns | chance, rows / columns |", "|---|---|---|---|---|"]
    for result in results:
        for name, sides in result["angles"].items():
            if name in ("weight", "adapted") and result is not results[0]:
                continue
            cells = [f"{s['mean']:.1f} ± {s['deviation']:.1f}" if s else "-" for s in sides.values()]
            chance = " / ".join(f"{s['chance']:.1f}" if s else "-" for s in sides.values())
            lines.append(f"| {result['run']} | {name} | {cells[0]} | {cells[1]} | {chance} |")
    lines += ["", "| run | test accuracy, % | moved, % | share of turning, % | training |", "|---|---|---|---|---|"]
    for r in results:
        shares = [100 * r[key] for key in ("test_accuracy", "relative_movement", "share_of_turning")]
        cells = [f"{share:.1f}" for share in shares]
        lines.append(f"| {r['run']} | {' | '.join(cells)} | {r['train_seconds']:.0f} s |")
    return "\n".join(lines) + "\n"


def draw_angles(found: dict[str, Analysis]) -> bytes:
    """One panel for the pre-trained weights, and two (down, up) for each of DRAWN."""
    drawn = {name: title for name, title in DRAWN.items() if name in found}
    figure = new_figure(9.6, 2.5 * len(drawn))
    grid = figure.subplots(len(drawn), 3, squeeze=False)
    for row, (name, title) in zip(grid, drawn.items(), strict=True):
        matrices = matrices_of([layer for layer in found[name].layers if layer.projections])
        histogram(
            row[0],
            matrices["weight" if name == "lora" else "adapted"],
            "pre-trained weights" if name == "lora" else f"weights with {title}",
        )
        for axes, key in zip(row[1:], ("down", "up"), strict=True):
            histogram(axes, matrices[key], f"{title}: {key}")
            highest = max(
                pooled([getattr(m, side) for m in matrices[key]])[0][5:175].max() for side in ("rows", "columns")
            )
            axes.set_ylim(0, 1.5 * highest)
        for axes in row:
            axes.set_xlabel("angle (degrees)" if axes in grid[-1] else "")
        row[0].set_ylabel("share of pairs per degree")
    return rendered(figure)


def main() -> None:
    args = parse()
    results, found = [], {}
    for name in args.runs:
        metrics = train(args, name)
        found[name] = inspect(open_run(args.out / name, weights=args.weights).model.module)
        results.append(summary(name, metrics, found[name]))
        print(name, results[-1]["angles"], flush=True)
    write_json(args.out / "angles.json", results)
    write_text(args.out / "table.md", table(results))
    write_bytes(args.out / "angles.png", draw_angles(found))
    print(table(results))


if __name__ == "__main__":
    main()
