"""``orthotune evaluate``."""

from __future__ import annotations

from pathlib import Path

from orthotune.cli.parser import Parser, add_run_options, check_new_file


def run(arguments: list[str]) -> int:
    """Print the scores of a run on a split, and write them as JSON with ``--out``."""
    parser = Parser("orthotune evaluate", "Scores of a finished run on a split of other data of its task.")
    parser.option(parser, "--run", str, None, "run folder", required=True)
    parser.option(parser, "--data", str, None, "data with the split, as --data of fit", required=True)
    parser.option(parser, "--split", str, "test", "which split of --data")
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
    print("\n".join(scores.lines()))
    if options.out:
        where = {"run": options.run, "data": options.data, "split": options.split}
        write_json(Path(options.out), {**where, **scores.as_dict()})
    return 0
