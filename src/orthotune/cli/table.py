"""``orthotune table``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from orthotune.cli.parser import Parser, check_new_file
from orthotune.errors import InputError

_DESCRIPTION = """A table of the papers' shape: methods down, tasks across, mean and deviation over seeds.

  orthotune table runs/vtab
  orthotune table runs/vtab --format latex --second --out table.tex
  orthotune table runs/vtab --paper rlrr_vtab1k
  orthotune table runs/ablation --rows adapter.r --costs [parameters,train_time]
  orthotune table runs/vtab --phase search --rows name lr --where task=cifar100

FOLDER is that of a sweep, or any folder with runs of orthotune fit below it. A cell averages over runs that differ in
nothing but their seed. Groups of tasks come from the sweep's protocol, from --protocol, or from --groups."""


def run(arguments: list[str]) -> int:
    """Print, or write with ``--out``, the table."""
    from orthotune.papers.results import paper_table
    from orthotune.reporting import Layout, build_table, render
    from orthotune.reporting.runs import load_runs, select

    options = _parser().read(arguments)
    check_new_file(options.out, options.overwrite)
    if options.decimals < 0:
        raise InputError(f"--decimals is {options.decimals}; it must be at least 0")
    paper = paper_table(options.paper) if options.paper else None
    layout = Layout(
        rows=options.rows or ("name",),
        columns=options.columns,
        metrics=options.metric or (),
        phase=options.phase,
        groups=groups_of(options),
        mean=options.mean,
        partial=options.partial_means,
        costs=options.costs,
        paper=paper,
        decimals=options.decimals,
        title=options.title or "",
    )
    table = build_table(select(load_runs(options.folders), options.where or ()), layout)
    text = render(table, options.format, options.second)
    if options.out:
        from orthotune.training.files import write_text

        write_text(Path(options.out), text)
    else:
        sys.stdout.write(text)
    return 0


def _parser() -> Parser:
    from orthotune.reporting import TableFormat
    from orthotune.reporting.runs import Cost

    parser = Parser("orthotune table", _DESCRIPTION)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of sweeps or runs")
    parser.option(parser, "--format", TableFormat, "table", "how to print")
    parser.option(parser, "--out", str | None, None, "file to write instead of printing")
    parser.option(parser, "--overwrite", bool, False, "replace the file --out")
    parser.option(parser, "--title", str | None, None, "of the table")
    shape = parser.add_argument_group("shape")
    names = {"nargs": "+", "metavar": "NAME"}
    parser.option(shape, "--rows", str, None, "a row is: name (the default), method, task, model or settings", **names)
    parser.option(shape, "--columns", str, "task", "a column is one of the same", metavar="NAME")
    parser.option(shape, "--metric", str, None, "test scores such as top5; without: each run's own", **names)
    parser.option(shape, "--where", str, None, "only runs with this setting", nargs="+", metavar="NAME=VALUE")
    parser.option(
        shape, "--phase", Literal["final", "search"], "final", "final runs, or the search's on validation data"
    )
    parser.option(shape, "--costs", list[Cost], ["parameters"], "columns at the end, as [a,b]; [] for none")
    means = parser.add_argument_group("means")
    parser.option(means, "--protocol", str | None, None, "protocol (name or file) whose groups of tasks get a mean")
    parser.option(means, "--groups", dict[str, Any], {}, "instead: --groups.NAME [a,b]")
    parser.option(
        means, "--mean", Literal["tasks", "groups", "none"], "tasks", "last mean: over tasks, or over groups' means"
    )
    parser.option(means, "--partial-means", bool, False, "means with parts missing, too, marked (n/m)")
    parser.option(means, "--decimals", int, 1, "digits after the point of a score")
    parser.option(means, "--second", bool, False, "mark the second best of a column, too")
    paper = parser.add_argument_group("paper")
    parser.option(paper, "--paper", str | None, None, f"a paper's numbers below ours: {', '.join(_papers())}")
    return parser


def _papers() -> Sequence[str]:
    from orthotune.papers.results import paper_tables

    return list(paper_tables())


def groups_of(options: Any) -> Mapping[str, Sequence[str]]:
    """The groups of columns that the options name, or the protocol of the sweep in one of the folders."""
    from orthotune.protocols import load_protocol
    from orthotune.reporting.runs import protocol_of

    if options.protocol is not None and options.groups:
        raise InputError("--protocol and --groups exclude each other: give one of them")
    for name, members in options.groups.items():
        if not isinstance(members, list) or not members:
            raise InputError(f"--groups.{name} is {members!r}; it must be a list of columns, as [a,b]")
    if options.groups:
        return {name: [str(member) for member in members] for name, members in options.groups.items()}
    protocol = options.protocol or protocol_of(options.folders)
    return load_protocol(protocol).groups if protocol else {}
