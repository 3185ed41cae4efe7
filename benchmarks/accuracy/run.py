"""Compare methods on one image folder: each method's learning rate from a grid on a split of train, then several seeds.

    python benchmarks/accuracy/run.py --model deit_tiny_patch16_224 --weights deit_tiny_patch16_224.safetensors \
        --data caltech101 --image-size 112 --out runs/caltech101

The probe comes first; its best learning rate is the head's in every other method, so that only the adapter's is chosen
for them. A grid is three values of the ladder ..., 1e-3, 3e-3, 1e-2, 3e-2, ... and grows by the next while the best is
at its edge. The grid's runs see a validation split of train and never the test images; the final runs train on all of
train and are tested once, at the last epoch. A killed benchmark continues where it stopped. Writes results.json and
table.md into the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))

from comparing import LADDER, percent_column, search
from comparing import table as markdown

from orthotune.training import FitConfig, Metrics, fit

METHODS = ["linear", "rlrr", "lora", "goft", "qgoft", "aoft"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="timm name or transformers model")
    parser.add_argument("--weights", required=True, help="state dict of the pre-trained model")
    parser.add_argument("--data", required=True, type=Path, help="folder with train/ and test/")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--middle-lr", type=float, choices=LADDER[1:-1], default=3e-3, help="of the first grid")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--grid-epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    return parser.parse_args()


def train(args: argparse.Namespace, name: str, **settings: Any) -> Metrics:
    """Run one fit under ``args.out / name``, or return its result if it is finished."""
    config = FitConfig(
        model=args.model,
        weights=args.weights,
        image_size=args.image_size,
        batch_size=args.batch_size,
        augment="vtab",
        out=str(args.out / name),
        **settings,
    )
    return fit(config, resume=True, quiet=True)


def train_only(data: Path, out: Path) -> Path:
    """Return a folder that shows the training images alone, so that the grid cannot look at the test images."""
    view = out / "train_only"
    view.mkdir(parents=True, exist_ok=True)
    if not (view / "train").exists():
        os.symlink((data / "train").resolve(), view / "train")
    return view


def compare(args: argparse.Namespace, method: str, head_lr: float | None) -> dict[str, Any]:
    def validate(lr: float) -> float:
        metrics = train(
            args,
            f"grid/{method}-{lr:g}",
            method=method,
            data=str(train_only(args.data, args.out)),
            epochs=args.grid_epochs,
            lr=lr,
            head_lr=head_lr,
        )
        accuracy: float = metrics.curve[-1]["val_accuracy"]
        print(f"{method:7s} lr {lr:<7g} validation accuracy {accuracy:.2%}", flush=True)
        return accuracy

    lr, grid = search(validate, args.middle_lr)
    finals = [
        train(
            args,
            f"final/{method}-{lr:g}-{seed}",
            method=method,
            data=str(args.data),
            validation="none",
            epochs=args.epochs,
            lr=lr,
            head_lr=head_lr,
            seed=seed,
        )
        for seed in args.seeds
    ]
    accuracies = [metrics.test["top1"] for metrics in finals]
    print(f"{method:7s} lr {lr:<7g} test {accuracies}", flush=True)
    return {
        "method": method,
        "grid": grid,
        "lr": lr,
        "head_lr": head_lr or lr,
        "test_accuracy": accuracies,
        "seeds": args.seeds,
        "parameters": finals[0].parameters,
        "step_seconds_median": [metrics.step_seconds_median for metrics in finals],
        "orthogonality_defect": finals[0].orthogonality_defect,
        "versions": finals[0].versions,
        "machine": finals[0].machine,
        "data_sha256": finals[0].data["sha256"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, best mean in bold."""
    head = [
        "method",
        "adapter parameters",
        "learning rate",
        "test accuracy, % (mean and standard deviation over seeds)",
    ]
    accuracies = percent_column([r["test_accuracy"] for r in results])
    rows = [
        [r["method"], f"{r['parameters']['adapter']:,}", f"{r['lr']:g}", accuracy]
        for r, accuracy in zip(results, accuracies, strict=True)
    ]
    return markdown(head, rows) + "\n"


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    head_lr = None
    for method in args.methods:
        results.append(compare(args, method, head_lr))
        head_lr = results[0]["lr"] if results[0]["method"] == "linear" else None
        settings = {**vars(args), **{key: Path(getattr(args, key)).name for key in ("weights", "data", "out")}}
        (args.out / "results.json").write_text(json.dumps({"settings": settings, "results": results}, indent=1))
        (args.out / "table.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
