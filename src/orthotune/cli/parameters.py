"""``orthotune parameters``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orthotune.cli.parser import Parser, check_new_file
from orthotune.cli.tables import Rows, TableFormat, text
from orthotune.errors import InputError
from orthotune.methods import METHODS, get_method
from orthotune.progress import quietly, track

_DESCRIPTION = """Count the parameters that each method trains. No weights are made or loaded.

  orthotune parameters --model vit_base_patch16_224 --classes 100
  orthotune parameters --papers --format markdown --out parameters.md

With --papers: the figures of the papers' tables and ours beside them, for one --model or all."""


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("orthotune parameters", _DESCRIPTION)
    parser.option(parser, "--model", str | None, None, "timm name, or a directory of transformers")
    parser.option(parser, "--classes", int, 100, "classes of the head")
    parser.option(parser, "--methods", list[str] | None, None, "some methods, as [a,b]; default all")
    parser.option(parser, "--papers", bool, False, "beside the papers' figures")
    parser.option(parser, "--format", TableFormat, "table", "how to print")
    parser.option(parser, "--out", str | None, None, "write to this file instead")
    parser.option(parser, "--overwrite", bool, False, "replace the file --out")
    parser.option(parser, "--quiet", bool, False, "no progress bar")
    options = parser.read(arguments)
    check_new_file(options.out, options.overwrite)
    if options.model is None and not options.papers:
        raise InputError("--model is missing: give a model, or --papers")
    if options.classes < 1:
        raise InputError(f"--classes is {options.classes}; it must be at least 1")
    for name in options.methods or ():
        get_method(name)
    with quietly(options.quiet):
        head, rows = (_papers if options.papers else _methods)(options)
    table = text(head, rows, options.format)
    if options.out:
        Path(options.out).write_text(table)
    else:
        print(table, end="")
    return 0


def _methods(options: Any) -> tuple[Sequence[str], Rows]:
    from orthotune.papers.parameters import count

    rows: Rows = []
    for name in track(options.methods or METHODS, "counting"):
        try:
            found = count(options.model, name, options.classes)
        except InputError as error:
            rows.append((name, "-", "-", "-", str(error)))
            continue
        share = f"{found.trained / found.total:.2%}"
        rows.append((name, f"{found.adapter:,}", f"{found.head:,}", f"{found.trained:,}", share))
    return ("method", "adapter", "head", "trained", "of all"), rows


def _papers(options: Any) -> tuple[Sequence[str], Rows]:
    from orthotune.papers.parameters import agrees, ours, published

    figures = [f for f in published(options.model) if not options.methods or f.method in options.methods]
    if not figures:
        raise InputError(f"the papers' tables have no figures for model {options.model!r} and these methods")
    rows: Rows = []
    for figure in track(figures, "counting"):
        try:
            number = ours(figure)
        except InputError:
            number = math.nan
        settings = " ".join(f"{k}={v}" for k, v in figure.settings.items())
        rows.append(
            (
                figure.source,
                figure.backbone,
                figure.row,
                f"{figure.method} {settings}".strip(),
                f"{figure.millions:.{figure.decimals}f}",
                "-" if math.isnan(number) else f"{number:.4f}",
                "yes" if agrees(figure, number) else "no",
                figure.remark,
            )
        )
    return ("source", "backbone", "row", "method here", "paper, M", "here, M", "agrees", "remark"), rows
