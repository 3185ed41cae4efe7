"""``orthotune predict``."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Literal

from orthotune.cli.parser import Parser, add_run_options, check_new_file


def run(arguments: list[str]) -> int:
    """Print, or write with ``--out``, the class and probability of each image."""
    parser = Parser("orthotune predict", "Class and probability of images.")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of them")
    parser.option(parser, "--run", str, None, "run folder", required=True)
    parser.option(parser, "--format", Literal["csv", "json"], "csv", "of the output")
    parser.option(parser, "--out", str | None, None, "file to write instead of printing")
    add_run_options(parser)
    options = parser.read(arguments)
    check_new_file(options.out, options.overwrite)
    from orthotune.training import predict
    from orthotune.training.files import write_text

    predictions = predict(
        options.run,
        options.images,
        weights=options.weights,
        batch_size=options.batch_size,
        device=options.device,
        quiet=options.quiet,
    )
    rows = [dataclasses.asdict(p) for p in predictions]
    if options.format == "json":
        text = json.dumps(rows, indent=2) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, ["path", "label", "probability"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "probability": f"{row['probability']:.6f}"} for row in rows)
        text = buffer.getvalue()
    if options.out:
        write_text(Path(options.out), text)
    else:
        sys.stdout.write(text)
    return 0
