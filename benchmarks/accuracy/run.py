"""Compare methods on folders of images: accuracy over seeds, parameters, and the time of a training step.

    python benchmarks/accuracy/run.py --model deit_tiny_patch16_224 --weights deit_tiny_patch16_224.safetensors \
        --data cifar10 fashion_mnist --image-size 64 --out runs/family

By default every method of the registry. With --lr grid the probe (linear) comes first and its best learning rate is the
head's in every other method, so that only the adapter's is chosen for them. The search is on the first folder and its
choice holds for all. A grid is three values of the ladder ..., 1e-3, 3e-3, 1e-2, ... around the registry's and grows by
the next while the best is at its edge. Its runs are scored on images of train, never on the test images; the final runs
train on all of train and are tested once, at the last epoch. With --lr registry there is no search. --images-per-class
takes the first images of each class only, and as many of the next ones of train for the search's scores. At last a
training step of every method is timed, side by side with that of the head over the frozen model.

A killed benchmark continues where it stopped, and a call with other methods or folders takes what is there: several
processes may share the work by folder. Writes results.json and table.md into the output folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(2, str(Path(__file__).parents[1] / "speed"))

from comparing import percent_column, search
from comparing import table as markdown
from folders import view
from step_times import time_steps

from orthotune.methods import METHODS, get_method
from orthotune.training import FitConfig, Metrics, fit
from orthotune.training.files import write_json, write_text


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="timm name or transformers model")
    parser.add_argument("--weights", required=True, help="state dict of the pre-trained model")
    parser.add_argument("--data", required=True, nargs="+", type=Path, help="folders with train/ and test/")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--lr", choices=["grid", "registry"], default="grid", help="search, or take the registry's")
    parser.add_argument("--head-lr", type=float, help="of the head, where linear is not searched; as lr if not given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--grid-epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images-per-class", nargs=2, type=int, metavar=("TRAIN", "TEST"))
    parser.add_argument("--repeats", type=int, default=7, help="of the timed steps; 0: do not time")
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


def choose(args: argparse.Namespace, method: str, head_lr: float | None) -> tuple[float, dict[float, float]]:
    """Search a method's learning rate on the first folder: return it and the validation accuracies by rate."""
    data = args.data[0]
    splits = {"train": ("train", slice(None))}
    if args.images_per_class:
        count = args.images_per_class[0]
        splits = {"train": ("train", slice(count)), "val": ("train", slice(count, 2 * count))}
    train_only = view(data, args.out / data.name / "train_only", splits)

    def validate(lr: float) -> float:
        settings = {"method": method, "data": str(train_only), "lr": lr, "head_lr": head_lr}
        metrics = train(args, f"{data.name}/grid/{method}-{lr:g}", epochs=args.grid_epochs, **settings)
        accuracy: float = metrics.curve[-1]["val_accuracy"]
        print(f"{data.name} {method:14s} lr {lr:<7g} validation accuracy {accuracy:.2%}", flush=True)
        return accuracy

    return search(validate, get_method(method).lr)


def test(args: argparse.Namespace, data: Path, method: str, lr: float, head_lr: float | None) -> dict[str, Any]:
    """Train one method on one folder with every seed, and test it."""
    limits = zip(("train", "test"), args.images_per_class or (None, None), strict=True)
    images = view(data, args.out / data.name / "images", {split: (split, slice(n)) for split, n in limits})
    finals = [
        train(
            args,
            f"{data.name}/final/{method}-{lr:g}-{seed}",
            method=method,
            data=str(images),
            validation="none",
            epochs=args.epochs,
            lr=lr,
            head_lr=head_lr,
            seed=seed,
        )
        for seed in args.seeds
    ]
    accuracies = [metrics.test["top1"] for metrics in finals]
    print(f"{data.name} {method:14s} lr {lr:<7g} test {accuracies}", flush=True)
    return {
        "data": data.name,
        "method": method,
        "lr": lr,
        "head_lr": head_lr or lr,
        "test_accuracy": accuracies,
        "seeds": args.seeds,
        "parameters": finals[0].parameters,
        "images": finals[0].data,
        "step_seconds_median": [metrics.step_seconds_median for metrics in finals],
        "orthogonality_defect": finals[0].orthogonality_defect,
        "versions": finals[0].versions,
        "machine": finals[0].machine,
    }


def table(results: list[dict[str, Any]], steps: dict[str, Any]) -> str:
    """Return the results as a Markdown table, one column of accuracies a folder, each with its best mean in bold."""
    folders = list(dict.fromkeys(r["data"] for r in results))
    columns = {}
    for name in folders:
        own = [r for r in results if r["data"] == name]
        cells = percent_column([r["test_accuracy"] for r in own])
        columns[name] = {r["method"]: (r, cell) for r, cell in zip(own, cells, strict=True)}
    head = ["method", "adapter parameters", "step time / frozen", "learning rate"]
    rows = []
    for method in dict.fromkeys(r["method"] for r in results):
        entries = [columns[name].get(method) for name in folders]
        first = next(entry[0] for entry in entries if entry)
        ratio = f"{steps[method]['ratio']:.2f}" if method in steps else "-"
        rates = ", ".join(dict.fromkeys(f"{entry[0]['lr']:g}" for entry in entries if entry))
        row = [method, f"{first['parameters']['adapter']:,}", ratio, rates]
        rows.append([*row, *(entry[1] if entry else "-" for entry in entries)])
    return markdown([*head, *(f"{name}, test accuracy, %" for name in folders)], rows) + "\n"


def main() -> None:
    args = parse()
    for method in args.methods:
        get_method(method)
    args.out.mkdir(parents=True, exist_ok=True)
    rates, grids, head_lr = {method: get_method(method).lr for method in args.methods}, {}, args.head_lr
    if args.lr == "grid":
        for method in sorted(args.methods, key=lambda method: method != "linear"):
            rates[method], grids[method] = choose(args, method, head_lr)
            head_lr = rates[method] if method == "linear" else head_lr
    results = [test(args, data, method, rates[method], head_lr) for data in args.data for method in args.methods]
    steps = time_steps(args, args.methods) if args.repeats else {}
    names = {"weights": Path(args.weights).name, "data": [d.name for d in args.data], "out": args.out.name}
    write_json(
        args.out / "results.json",
        {"settings": {**vars(args), **names}, "grids": grids, "results": results, "steps": steps},
    )
    write_text(args.out / "table.md", table(results, steps))
    print(table(results, steps))


if __name__ == "__main__":
    main()
