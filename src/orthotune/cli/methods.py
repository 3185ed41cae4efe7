"""``orthotune methods``."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.table import Column, Table

from orthotune.cli.parser import Parser
from orthotune.fields import TARGETS_HELP, adapter_fields, type_text
from orthotune.methods import METHODS, get_method


def run(arguments: list[str]) -> int:
    """Print the table of methods, or the adapter fields of one."""
    parser = Parser("orthotune methods", "List the methods, or the adapter fields of one of them.")
    parser.add_argument("name", nargs="?", type=str | None, default=None, metavar="NAME", help="a method")
    name = parser.read(arguments).name
    console = Console()
    if name is None:
        table = Table("method", "learning rate", "modules", "what it trains", box=None)
        for key, method in METHODS.items():
            targets = method.targets if method.is_adapter else None
            table.add_row(key, f"{method.lr:g}", targets or "-", method.summary)
        console.print(table)
        return 0
    console.print(get_method(name).summary, highlight=False)
    if get_method(name).is_adapter:
        console.print(f"{TARGETS_HELP} null: {get_method(name).targets or 'found by the method'}.\n", highlight=False)
    if not adapter_fields(name):
        return 0
    table = Table(Column("--adapter.", no_wrap=True), "default", "values", "meaning", box=None)
    for field, (hint, default, text) in adapter_fields(name).items():
        table.add_row(field, "null" if default is None else str(default), type_text(hint), textwrap.shorten(text, 300))
    console.print(table)
    return 0
