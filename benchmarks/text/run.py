"""Compare methods on a text encoder and tasks of GLUE: learning rates from a small grid, then several seeds.

    python benchmarks/text/run.py --model all-MiniLM-L6-v2 --data glue --tasks cola sst2 --out runs/text

--model is a folder that transformers reads without network, --data holds ``cola/train.tsv`` and ``dev.tsv``, and
``sst2/train.tsv`` and ``test.tsv`` (this one GLUE's dev set). Every method adapts the layers that ``orthotune fit``
would, and trains the head: the classifier, and the pooler where the model has one.

Of train, a few thousand sentences are drawn, the same ones for all. The probe (linear) comes first; its best learning
rate is the head's in every other method, so that only the adapter's is chosen for them. The search is on the first task
and its choice holds for all. A grid is three values around the one ``orthotune methods`` gives, times --lr-scale, and
grows by the next while the best is at its edge; its runs train on the first of the drawn sentences, with one seed, and
are scored on others of train, never on the dev set. The final runs train on all that was drawn and are scored once, on
the dev set. At last a training step of every method is timed, side by side with that of the head over the frozen
encoder.

A killed benchmark continues where it stopped: every run is a JSON file, and a call with other tasks, methods or seeds
takes from --out what is there. Writes results.json and table.md at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(2, str(Path(__file__).parents[1] / "speed"))

import transformers
from comparing import search
from glue import TASKS, Batches, Task, read
from glue_table import table
from side_by_side import time_steps
from transformers import AutoTokenizer
from tuning import Recipe, build, run

from orthotune.errors import InputError
from orthotune.methods import get_method
from orthotune.models.weights import fingerprint
from orthotune.training.files import write_json, write_text
from orthotune.training.loop import build_accelerator
from orthotune.training.metrics import machine, versions

METHODS = ["linear", "goft", "qgoft", "rlrr", "aoft", "lora", "bitfit"]


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of a transformers encoder")
    parser.add_argument("--data", required=True, type=Path, help="folder of GLUE")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=METHODS, help=f"default: {' '.join(METHODS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-examples", type=positive, default=2000)
    parser.add_argument("--validation-examples", type=positive, default=500)
    parser.add_argument("--grid-examples", type=positive, default=500, help="sentences a run of the grid trains on")
    parser.add_argument("--grid-epochs", type=positive, default=1)
    parser.add_argument("--epochs", nargs="+", type=positive, default=[3], help="one for all tasks or one a task")
    parser.add_argument("--lr-scale", type=float, default=0.3, help="middle of the grid, relative to the registry's")
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument("--max-length", type=positive, default=48, help="tokens")
    parser.add_argument("--repeats", type=positive, default=15, help="of the timed steps; 3 more warm up")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no", help="automatic mixed precision")
    args = parser.parse_args(arguments)
    if len(args.epochs) not in (1, len(args.tasks)):
        parser.error(f"--epochs {args.epochs} is neither one number nor one for each of {args.tasks}")
    each = args.epochs * (len(args.tasks) if len(args.epochs) == 1 else 1)
    args.epochs = dict(zip(args.tasks, each, strict=True))
    return args


class Comparison:
    """The parts that all runs share, and the folder of their results."""

    def __init__(self, args: argparse.Namespace) -> None:
        for method in args.methods:
            get_method(method)
        if not (args.model / "config.json").is_file():
            raise InputError(f"--model {str(args.model)!r} is no folder with a config.json")
        self.args = args
        self.data = {
            name: read(TASKS[name], args.data, args.train_examples, args.validation_examples) for name in args.tasks
        }
        self.accelerator = build_accelerator(args.device, args.precision)
        self.tokenizer = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
        base = build(args.model, "linear", seed=0).classifier
        self.head, self.base_sha256 = base.head, fingerprint(base.module, base.head)

    def batches(self, examples: list[tuple[str, int]]) -> Batches:
        """Tokenise."""
        return Batches(examples, self.tokenizer, self.args.batch_size, self.args.max_length)

    def once(self, name: str, settings: dict[str, Any], make: Any) -> dict[str, Any]:
        """Return the result of ``make``, from the file ``name`` if an earlier call with these settings made it."""
        path = self.args.out / f"{name}.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text())
            if found["settings"] != json.loads(json.dumps(settings)):
                raise InputError(f"{str(path)!r} was made with other settings: give another --out")
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"settings": settings, **make()})
        return self.once(name, settings, make)

    def train(self, name: str, part: str, task: Task, method: str, lr: float, head_lr: float | None, seed: int) -> Any:
        """Run once: ``part`` is grid or final."""
        args, data = self.args, self.data[name]
        grid = part == "grid"
        recipe = Recipe(
            method=method,
            lr=lr,
            head_lr=head_lr or lr,
            seed=seed,
            epochs=args.grid_epochs if grid else args.epochs[name],
            batch_size=args.batch_size,
            max_length=args.max_length,
            precision=args.precision,
        )
        train = data.train[: args.grid_examples] if grid else data.train
        settings = {
            "task": name,
            **dataclasses.asdict(recipe),
            "train_examples": len(train),
            "data": data.describe(),
            "base_sha256": self.base_sha256,
        }

        def make() -> dict[str, Any]:
            test = self.batches(data.validation if grid else data.test)
            return run(args.model, recipe, task, self.batches(train), test, self.accelerator)

        return self.once(f"{part}/{name}-{method}-{lr:g}-{seed}", settings, make)

    def choose(self, method: str, head_lr: float | None) -> tuple[float, dict[str, float]]:
        """Search the learning rate of a method on the first task: return it and the scores by rate."""
        name = self.args.tasks[0]

        def validate(lr: float) -> tuple[float, float]:
            found = self.train(name, "grid", TASKS[name], method, lr, head_lr, self.args.seeds[0])
            loss = math.inf if found["loss"] is None else found["loss"]
            print(f"{name} {method:7s} lr {lr:<7g} validation {found['score']:.4f}, loss {loss:.4f}", flush=True)
            return found["score"], -loss

        lr, grid = search(validate, self.args.lr_scale * get_method(method).lr)
        return lr, {f"{key:g}": score for key, (score, _) in grid.items()}

    def test(self, name: str, method: str, lr: float, head_lr: float | None) -> dict[str, Any]:
        """Train a method on a task with every seed and score it on the dev set."""
        task = TASKS[name]
        finals = [self.train(name, "final", task, method, lr, head_lr, seed) for seed in self.args.seeds]
        scores = [final["score"] for final in finals]
        print(f"{name} {method:7s} lr {lr:<7g} dev set {scores}", flush=True)
        return {
            "task": name,
            "method": method,
            "lr": lr,
            "head_lr": head_lr or lr,
            "scores": scores,
            "seeds": self.args.seeds,
            "diverged": [final["diverged"] for final in finals],
            "parameters": finals[0]["parameters"],
            "train_seconds": [final["train_seconds"] for final in finals],
            "orthogonality_defect": finals[0]["orthogonality_defect"],
        }

    def time(self) -> dict[str, Any]:
        """Time a step of every method on the batch of median length of the first task."""
        args = self.args
        batches = list(self.batches(self.data[args.tasks[0]].train))
        batch = batches[len(batches) // 2]
        shape = list(batch["input_ids"].shape)
        settings = {"methods": args.methods, "batch": shape, "repeats": args.repeats, "precision": args.precision}
        return self.once(
            f"steps/{args.tasks[0]}",
            settings,
            lambda: time_steps(args.model, args.methods, batch, self.accelerator, args.repeats),
        )

    def run(self) -> str:
        """Run all that is not yet there, write the results and return the table."""
        args = self.args
        rates: dict[str, float] = {}
        grids: dict[str, dict[str, float]] = {}
        head_lr = None
        for method in sorted(args.methods, key=lambda method: method != "linear"):
            rates[method], grids[method] = self.choose(method, head_lr)
            head_lr = rates[method] if method == "linear" else head_lr
        results = [self.test(name, method, lr, head_lr) for name in args.tasks for method, lr in rates.items()]
        whole = {
            "settings": {**vars(args), "model": args.model.name, "data": args.data.name, "out": args.out.name},
            "versions": versions(),
            "machine": machine(self.accelerator.device),
            "data": {name: data.describe() for name, data in self.data.items()},
            "base_sha256": self.base_sha256,
            "head": self.head,
            "grids": grids,
            "results": results,
            "steps": self.time(),
        }
        write_json(args.out / "results.json", whole)
        write_text(args.out / "table.md", table(whole))
        return table(whole)


def main() -> None:
    """Run from the command line."""
    args = parse()
    transformers.logging.set_verbosity_error()  # the classifier is new, as it should be
    transformers.logging.disable_progress_bar()
    try:
        print(Comparison(args).run())
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
