"""``orthotune methods``."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.table import Column, Table

from orthotune.cli.parser import Parser
from orthotune.cli.tables import Rows, TableFormat, text
from orthotune.errors import InputError
from orthotune.fields import TARGETS_HELP, adapter_fields, type_text
from orthotune.methods import METHODS, Method, get_method

#: The model whose parameters the overview gives.
BACKBONE = "vit_base_patch16_224"

_DESCRIPTION = """List the methods, or the adapter fields of one of them.

  orthotune methods
  orthotune methods rlrr
  orthotune methods --format markdown

As markdown or csv the list also says which methods can be merged, and how many parameters each trains on ViT-B/16
besides the head, with its defaults."""


def run(arguments: list[str]) -> int:
    """Print the table of methods, or the adapter fields of one."""
    parser = Parser("orthotune methods", _DESCRIPTION)
    parser.add_argument("name", nargs="?", type=str | None, default=None, metavar="NAME", help="a method")
    parser.option(parser, "--format", TableFormat, "table", "how to print the list")
    options = parser.read(arguments)
    if options.name is None:
        print(_list() if options.format == "table" else text(*_overview(), options.format), end="")
        return 0
    if options.format != "table":
        raise InputError(f"--format {options.format} is for the list of all methods: leave out {options.name!r}")
    _fields(options.name)
    return 0


def _list() -> str:
    rows: Rows = [(name, f"{m.lr:g}", _targets(m), m.summary) for name, m in METHODS.items()]
    return text(("method", "learning rate", "modules", "what it trains"), rows, "table")


def _overview() -> tuple[tuple[str, ...], Rows]:
    from orthotune.papers.parameters import count

    rows: Rows = []
    for name, method in METHODS.items():
        found = count(BACKBONE, name, classes=1)
        rows.append((name, method.summary, _targets(method), "yes" if found.merges else "no", f"{found.adapter:,}"))
    return ("method", "what it trains", "modules", "merges", "parameters on ViT-B/16"), rows


def _targets(method: Method) -> str:
    return (method.targets or "found by the method") if method.is_adapter else "-"


def _fields(name: str) -> None:
    console = Console()
    console.print(get_method(name).summary, highlight=False)
    if get_method(name).is_adapter:
        console.print(f"{TARGETS_HELP} null: {get_method(name).targets or 'found by the method'}.\n", highlight=False)
    if not adapter_fields(name):
        return
    table = Table(Column("--adapter.", no_wrap=True), "default", "values", "meaning", box=None)
    for field, (hint, default, help_text) in adapter_fields(name).items():
        table.add_row(
            field, "null" if default is None else str(default), type_text(hint), textwrap.shorten(help_text, 300)
        )
    console.print(table)
