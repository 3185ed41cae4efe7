"""``orthotune evaluate``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from orthotune.cli.parser import Parser, add_run_options, check_new_file


def run(arguments: list[str]) -> int:
    """Print the accuracies of a run on a split, and write them as JSON with ``--out``."""
    parser = Parser("orthotune evaluate", "Accuracy of a finished run on a split of a folder of images.")
    parser.option(parser, "--run", str, None, "run folder", required=True)
    parser.option(parser, "--data", str, None, "folder with the split, one sub-folder per class", required=True)
    parser.option(parser, "--split", str, "test", "sub-folder of --data")
    parser.option(parser, "--out", str | None, None, "JSON file to write")
    add_run_options(parser)
    options = parser.read(arguments)
    check_new_file(options.out, options.overwrite)
    from orthotune.training import evaluate
    from orthotune.training.files import write_json

    scores = evaluate(
        options.run,
        options.data,
        options.split,
        weights=options.weights,
        batch_size=options.batch_size,
        device=options.device,
        quiet=options.quiet,
    )
    print(f"images          {scores.images}")
    print(f"top-1 accuracy  {scores.top1:.2%}")
    if scores.top5 is not None:
        print(f"top-5 accuracy  {scores.top5:.2%}")
    print(f"per-class mean  {scores.per_class_mean:.2%}")
    print(f"cross-entropy   {scores.loss:.4f}")
    if options.out:
        where = {"run": options.run, "data": options.data, "split": options.split}
        write_json(Path(options.out), {**where, **dataclasses.asdict(scores)})
    return 0
