"""Tables as text: for a terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table

Rows = list[Sequence[str]]
TableFormat = Literal["table", "markdown", "csv"]


def text(head: Sequence[str], rows: Rows, form: TableFormat, width: int = 150) -> str:
    """The table with the columns ``head``, in the format ``form``, ending with a new line; ``width`` on a terminal."""
    if form == "markdown":
        lines = [head, ["---"] * len(head), *rows]
        return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)
    out = io.StringIO()
    if form == "csv":
        csv.writer(out).writerows([head, *rows])
        return out.getvalue()
    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*row)
    Console(file=out, width=width).print(table)
    return out.getvalue()
