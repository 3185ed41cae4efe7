"""``orthotune demo``."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orthotune.cli.parser import Parser
from orthotune.errors import InputError

_DESCRIPTION = """Compare six methods on real images in about a minute. Needs no network and no data.

A small vision transformer is pre-trained on the digits 0-4 of scikit-learn's handwritten digits (8x8 pixels),
then adapted to the digits 5-9 with ten labelled images a class by each method; all other images test it."""


def run(arguments: list[str]) -> int:
    """Run the demonstration and print its table."""
    parser = Parser("orthotune demo", _DESCRIPTION)
    parser.option(parser, "--seed", int, 0, "of the split and of all training")
    parser.option(parser, "--shots", int, 10, "labelled images a class")
    parser.option(parser, "--out", str | None, None, "new folder to keep the runs in; otherwise they are deleted")
    options = parser.read(arguments)
    if not 1 <= options.shots <= 100:
        raise InputError(f"--shots is {options.shots}; it must be in 1..100")
    if options.out is not None and Path(options.out).exists():
        raise InputError(f"--out {options.out!r} already exists: give a new folder")
    from orthotune.demo import run_demo
    from orthotune.demo.run import METHODS, Row

    start = time.perf_counter()
    console = Console()
    progress = Console(stderr=True)
    table = Table("method", title=f"digits 0-4 to 5-9, {options.shots} images a class, seed {options.seed}")
    for name in (
        "adapter\nparameters",
        "trained\nwith head",
        "test\naccuracy",
        "step",
        "merged against\nadapted logits",
    ):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() if options.out is None else nullcontext(options.out) as folder:
        steps = run_demo(Path(folder), seed=options.seed, shots=options.shots)
        names = iter(("pre-training on the digits 0-4", *(f"adapting to 5-9 by {m}" for m in METHODS)))
        while True:
            with progress.status(next(names, "done")):
                result = next(steps, None)
            if result is None:
                break
            if isinstance(result, Row):
                table.add_row(
                    result.method,
                    f"{result.adapter_parameters:,}",
                    f"{result.trained_parameters:,}",
                    f"{result.test_accuracy:.1%}",
                    f"{result.step_seconds * 1e3:.0f} ms",
                    f"{result.merge_difference:.0e}" if result.adapter_parameters else "-",
                )
            elif result.test is not None:
                total = result.parameters["total"]
                console.print(f"pre-trained: {total:,} parameters, {result.test['top1']:.1%} on new images of 0-4")
    console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} s")
    console.print("One seed of a small task: another --seed moves a method by ten points and changes the ranking.")
    return 0
