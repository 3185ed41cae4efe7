"""The report: one HTML file with everything in it, which needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from orthotune.errors import InputError
from orthotune.exporting.citations import CITATIONS
from orthotune.reporting import costs, figures, grids, summary
from orthotune.reporting.analyses import Layers, analysis_panels
from orthotune.reporting.formats import html_table
from orthotune.reporting.layout import Layout
from orthotune.reporting.panels import Panel
from orthotune.reporting.runs import Run, label, order, row_keys
from orthotune.reporting.table import build_table

_JSON_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def make_report(
    runs: Sequence[Run],
    *,
    title: str = "Results",
    layout: Layout | None = None,
    analyses: Mapping[str, Layers] | None = None,
) -> str:
    """The HTML text of the report on ``runs``.

    ``layout`` is that of the overview table, without its rows: they are names, and settings where runs of one name
    differ in more than their seed. InputError where plotly is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(f"the report needs {error.name}: pip install 'orthotune[report]'") from error
    plotly = get_plotlyjs()
    script = _asset("report.js")
    context = _context(runs, layout or Layout(), analyses or {})
    # The policy lets the two scripts run that are written here, and nothing be fetched.
    policy = (
        f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("orthotune.reporting", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        title=title, plotly=plotly, script=script, style=_asset("report.css"), policy=policy, **context
    )


def _asset(name: str) -> str:
    return resources.files("orthotune.reporting").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def embedded(value: Any) -> str:
    """``value`` as JSON that may stand inside a script element, whatever its texts are."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_JSON_ESCAPES)


def _context(runs: Sequence[Run], layout: Layout, analyses: Mapping[str, Layers]) -> dict[str, Any]:
    finals = [run for run in runs if run.result.phase == "final" and run.score() is not None]
    phase: Any = "final" if finals else "search"
    scored = finals or [run for run in runs if run.score() is not None]
    keys = row_keys(scored)
    scored, doubles = _once(sorted(scored, key=lambda run: order(run, keys)), keys)
    rows: dict[str, list[Run]] = {}
    for run in scored:
        rows.setdefault(label(run, keys), []).append(run)
    table = None
    if scored:
        failed = [run for run in runs if run.result.status == "failed"]
        wanted = Layout(**{**vars(layout), "rows": keys, "phase": phase, "costs": ("parameters", "train_time")})
        table = build_table([*scored, *failed], wanted)
    panels = _panels(rows, runs, analyses)
    shared, own = summary.common_settings(runs)
    return {
        "sentences": summary.sentences(rows),
        "tiles": summary.tiles(runs),
        "table": html_table(table) if table else "",
        "columns": len(table.columns) if table else 0,
        "notes": [*(table.notes if table else ["No run was scored."]), *doubles],
        "sections": panels,
        "data": embedded(_data(rows, [panel for _, found in panels for panel in found])),
        "failed": [run.result for run in runs if run.result.status == "failed"],
        "runs": [(run.result, settings, score(run)) for run, settings in zip(runs, own, strict=True)],
        "shared": shared,
        "environments": summary.environments(runs),
        "datasets": summary.datasets(runs),
        "citations": citations(runs),
        "duration": summary.duration,
    }


def score(run: Run) -> str:
    """The run's score as text, empty without one."""
    value = run.score()
    return "" if value is None else f"{value:.2f}"


def _once(runs: Sequence[Run], keys: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs without those that are there twice with the same settings, and a sentence about that."""
    found: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        found.setdefault((label(run, keys), run.result.task, run.result.seed), run)
    count = len(runs) - len(found)
    return list(found.values()), [f"{count} runs are repetitions of others and left out."] if count else []


def _panels(rows: figures.Rows, runs: Sequence[Run], analyses: Mapping[str, Layers]) -> list[tuple[str, list[Panel]]]:
    """(heading, panels) of each section that has something to show."""
    times = "On the machine named below, on a log scale. No method is both better and cheaper than those on the line."
    sizes = "Trained parameters, on a log scale. No method is both better and smaller than those on the line."
    sections: list[tuple[str, Sequence[Panel | None]]] = [
        ("Learning curves", [figures.curves(rows)]),
        (
            "Accuracy and cost",
            [
                costs.costs(rows, "size", "Score against parameters", ("parameters", "trained"), sizes),
                costs.costs(rows, "time", "Score against time", ("train_time", "step_time", "memory"), times),
            ],
        ),
        ("Settings and seeds", [grids.lines(runs), grids.heat(runs), figures.seeds(rows)]),
        ("Orthogonality", [figures.defect_curves(rows), figures.final_defects(rows)]),
        ("Weights", analysis_panels(analyses)),
    ]
    found = [(heading, [panel for panel in panels if panel is not None]) for heading, panels in sections]
    return [(heading, panels) for heading, panels in found if panels]


def _data(rows: figures.Rows, panels: Sequence[Panel]) -> dict[str, Any]:
    """What the page's script draws: the rows, each with its colour by its place, and the panels."""
    names = dict.fromkeys([*rows, *(t["meta"]["method"] for p in panels if not p.legend for t in p.traces)])
    return {"methods": [name for name in names if name], "panels": [panel.checked() for panel in panels]}


def citations(runs: Sequence[Run]) -> list[str]:
    """BibTeX of the papers of the methods that were run."""
    methods = dict.fromkeys(run.result.method.removeprefix("h-adapter-").removeprefix("vpt-deep-") for run in runs)
    return list(dict.fromkeys(CITATIONS[method] for method in methods if method in CITATIONS))
