"""``orthotune methods``."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.table import Table

from orthotune.cli.parser import Parser
from orthotune.methods import METHODS, TARGETS_HELP, adapter_fields, get_method, type_text


def run(arguments: list[str]) -> int:
    """Print the table of methods, or the adapter fields of one."""
    parser = Parser("orthotune methods", "List the methods, or the adapter fields of one of them.")
    parser.add_argument("name", nargs="?", type=str | None, default=None, metavar="NAME", help="a method")
    name = parser.read(arguments).name
    console = Console()
    if name is None:
        table = Table("method", "learning rate", "modules", "what it trains", box=None)
        for key, method in METHODS.items():
            targets = method.targets if method.config else "-"
            table.add_row(key, f"{method.lr:g}", targets, method.summary)
        console.print(table)
        return 0
    console.print(get_method(name).summary, highlight=False)
    console.print(f"{TARGETS_HELP} null: {get_method(name).targets}.\n", highlight=False)
    table = Table("--adapter.", "default", "values", "meaning", box=None)
    for field, (hint, default, text) in adapter_fields(name).items():
        table.add_row(field, "null" if default is None else str(default), type_text(hint), textwrap.shorten(text, 300))
    console.print(table)
    return 0
