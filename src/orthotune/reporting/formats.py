"""A table as text: for a terminal, Markdown, LaTeX (booktabs), CSV and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Literal

from rich import markup

from orthotune.cli.tables import Rows, text
from orthotune.reporting.cells import Cell, Column
from orthotune.reporting.table import Row, Table

TableFormat = Literal["table", "markdown", "latex", "csv", "html"]

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def render(table: Table, form: TableFormat, second: bool = False) -> str:
    """The table in a format, ending with a new line. ``second`` marks the second best of a column, too.

    CSV has the numbers in full, with deviation, number of seeds, and the paper's number in columns of their own; the
    other formats have them as printed, and the notes below.
    """
    return _RENDERERS[form](table, second)


@dataclass(frozen=True)
class _Style:
    """How a format writes what is not plain text."""

    escape: Callable[[str], str]
    best: Callable[[str], str]
    second: Callable[[str], str]
    spread: Callable[[str], str]
    minus: str = MINUS


def _lines(table: Table, style: _Style, second: bool) -> Iterator[list[str]]:
    """The cells of each row as text, with a row for the paper and for the difference where there is one."""
    for row in table.rows:
        yield [
            style.escape(row.name),
            *(_text(c, k, style, second) for c, k in zip(row.cells, table.columns, strict=True)),
        ]
        if row.paper is not None:
            papers = [_number(c.paper, k) for c, k in zip(row.cells, table.columns, strict=True)]
            yield [style.escape(f"  paper: {row.paper}"), *papers]
            yield [
                "  difference",
                *(_difference(c, k, style.minus) for c, k in zip(row.cells, table.columns, strict=True)),
            ]


def _text(cell: Cell, column: Column, style: _Style, second: bool) -> str:
    if cell.mean is None:
        return MISSING
    shown = _number(cell.mean, column)
    if cell.mark == "best":
        shown = style.best(shown)
    elif cell.mark == "second" and second:
        shown = style.second(shown)
    if cell.deviation is not None:
        shown += style.spread(_number(cell.deviation, column))
    return shown if cell.complete or cell.of is None else f"{shown} ({cell.of[0]}/{cell.of[1]})"


def _number(value: float | None, column: Column) -> str:
    return MISSING if value is None else f"{value:.{column.decimals}f}"


def _difference(cell: Cell, column: Column, minus: str) -> str:
    value = cell.difference
    if column.kind == "cost":  # of another backbone, as often as not
        return ""
    if value is None:
        return MISSING
    shown = f"{abs(value):.{column.decimals}f}"
    sign = "" if float(shown) == 0 else minus if value < 0 else "+"
    return sign + shown


def _heads(table: Table) -> list[str]:
    return [table.label, *(column.title for column in table.columns)]


def _terminal(table: Table, second: bool) -> str:
    style = _Style(str, lambda s: s + "*", lambda s: s + "'", lambda s: f" ± {s}")
    rows: Rows = [[markup.escape(cell) for cell in line] for line in _lines(table, style, second)]
    notes = [*table.notes, "* best of its column" + ("; ' second best." if second else ".")]
    above = f"{table.title}\n" if table.title else ""
    return above + text(_heads(table), rows, "table", width=10_000) + "".join(f"{note}\n" for note in notes)


def _markdown(table: Table, second: bool) -> str:
    style = _Style(str, lambda s: f"**{s}**", lambda s: f"<u>{s}</u>", lambda s: f" ± {s}")
    rows: Rows = [[cell.strip() for cell in line] for line in _lines(table, style, second)]
    above = f"**{table.title}**\n\n" if table.title else ""
    notes = "\n".join(table.notes)
    return f"{above}{text(_heads(table), rows, 'markdown')}\n{notes}\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    MISSING: "--",
    "±": r"$\pm$",
    MINUS: "$-$",
}


def _tex(value: str) -> str:
    return "".join(_LATEX.get(character, character) for character in value)


def _latex(table: Table, second: bool) -> str:
    style = _Style(
        _tex,
        lambda s: rf"\textbf{{{s}}}",
        lambda s: rf"\underline{{{s}}}",
        lambda s: rf"\,{{\scriptsize$\pm${s}}}",
        "$-$",
    )
    spans, rules, start = [], [], 2
    for group, size in _groups(table):
        spans.append(rf"\multicolumn{{{size}}}{{c}}{{{_tex(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{start}-{start + size - 1}}}")
        start += size
    head = " & ".join(_tex(name) for name in _heads(table))
    body = [" & ".join(_indent(cell).replace(MISSING, "--") for cell in line) for line in _lines(table, style, second)]
    lines = [
        "% \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        *([rf"\caption{{{_tex(table.title)}}}"] if table.title else []),
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        *([" & " + " & ".join(spans) + r" \\", "".join(rules)] if rules else []),
        head + r" \\",
        r"\midrule",
        *(line + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize " + _tex(" ".join(table.notes)),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _indent(cell: str) -> str:
    return r"\quad " + cell.strip() if cell.startswith("  ") else cell


def _groups(table: Table) -> list[tuple[str, int]]:
    """(group, how many columns in a row belong to it)."""
    found: list[tuple[str, int]] = []
    for column in table.columns:
        if found and found[-1][0] == column.group:
            found[-1] = (column.group, found[-1][1] + 1)
        else:
            found.append((column.group, 1))
    return found


def _csv(table: Table, second: bool) -> str:
    head, rows = [table.label], [[row.name] for row in table.rows]
    if table.paper:
        head.append("paper's row")
        for cells, row in zip(rows, table.rows, strict=True):
            cells.append(row.paper or "")
    for i, column in enumerate(table.columns):
        own = [row.cells[i] for row in table.rows]
        parts: list[tuple[str, list[float | None]]] = [("", [cell.mean for cell in own])]
        if column.kind != "cost":
            parts += [(" deviation", [cell.deviation for cell in own]), (" seeds", [cell.runs or None for cell in own])]
        if column.kind == "mean":
            parts.append((" present", [cell.of[0] if cell.of else None for cell in own]))
        if table.paper and (column.kind != "cost" or any(cell.paper is not None for cell in own)):
            parts.append((" paper", [cell.paper for cell in own]))
        if table.paper and column.kind != "cost":
            parts.append((" difference", [cell.difference for cell in own]))
        for suffix, values in parts:
            head.append(column.title + suffix)
            for cells, value in zip(rows, values, strict=True):
                cells.append("" if value is None else f"{value:.6g}")
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    return out.getvalue()


def _html(table: Table, second: bool) -> str:
    title = html.escape(table.title or "Results")
    notes = "".join(f"<p><small>{html.escape(note)}</small></p>\n" for note in table.notes)
    page = resources.files("orthotune.reporting").joinpath("assets", "table.html").read_text(encoding="utf-8")
    return Template(page).substitute(title=title, table=html_table(table, second), notes=notes)


def html_table(table: Table, second: bool = False) -> str:
    """The ``<table>`` alone; each cell has its number in ``data-value``, a row its method in ``data-method``."""
    groups = [
        f'<th colspan="{size}" scope="colgroup"{" class=group" if group else ""}>{html.escape(group)}</th>'
        for group, size in _groups(table)
    ]
    heads = [f'<th scope="col" class="{column.kind}">{html.escape(column.title)}</th>' for column in table.columns]
    top = f"<tr><td></td>{''.join(groups)}</tr>\n" if any(column.group for column in table.columns) else ""
    body = "".join(f"<tbody>{_html_rows(row, table, second)}</tbody>\n" for row in table.rows)
    label = html.escape(table.label)
    return f'<table>\n<thead>\n{top}<tr><th scope="col">{label}</th>{"".join(heads)}</tr>\n</thead>\n{body}</table>\n'


def _html_rows(row: Row, table: Table, second: bool) -> str:
    style = _Style(
        html.escape, lambda s: f"<strong>{s}</strong>", lambda s: f"<u>{s}</u>", lambda s: f" <small>± {s}</small>"
    )
    single = Table(table.label, table.columns, (row,), ())
    shown = []
    for i, (name, *cells) in enumerate(_lines(single, style, second)):
        values = ["" if i or cell.mean is None else f' data-value="{cell.mean:.6g}"' for cell in row.cells]
        kinds = [f' class="{column.kind}"' for column in table.columns]
        inner = "".join(f"<td{v}{k}>{cell}</td>" for v, k, cell in zip(values, kinds, cells, strict=True))
        own = f' data-name="{html.escape(row.name)}" data-method="{html.escape(row.method)}"'
        about = ' class="paper"' if i else own
        shown.append(f'<tr{about}><th scope="row">{name.strip()}</th>{inner}</tr>')
    return "".join(shown)


_RENDERERS: dict[TableFormat, Callable[[Table, bool], str]] = {
    "table": _terminal,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "html": _html,
}
