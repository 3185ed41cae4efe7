"""``orthotune report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from orthotune.cli.parser import Parser, check_new_file

_DESCRIPTION = """One HTML file of the results of runs, for use without network: curves, costs, settings, failures.

  orthotune report runs/vtab --out vtab.html
  orthotune report runs/vtab runs/inspected --out vtab.html --title "VTAB-1k" --paper rlrr_vtab1k

FOLDER is that of a sweep, any folder with runs of orthotune fit below it, or one that orthotune inspect wrote."""


def run(arguments: list[str]) -> int:
    """Write the report."""
    from orthotune.cli.table import groups_of
    from orthotune.papers.results import paper_table
    from orthotune.reporting import Layout
    from orthotune.reporting.analyses import has_analysis, load_analyses
    from orthotune.reporting.report import make_report
    from orthotune.reporting.runs import load_runs, select
    from orthotune.training.files import write_text

    parser = Parser("orthotune report", _DESCRIPTION)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of sweeps, runs or analyses")
    parser.option(parser, "--out", str, None, "HTML file to write", required=True)
    parser.option(parser, "--overwrite", bool, False, "replace the file --out")
    parser.option(parser, "--title", str | None, None, "of the report; by default the folders' names")
    parser.option(parser, "--where", str, None, "only runs with this setting", nargs="+", metavar="NAME=VALUE")
    parser.option(parser, "--protocol", str | None, None, "protocol (name or file) whose groups of tasks get a mean")
    parser.option(parser, "--groups", dict[str, Any], {}, "instead: --groups.NAME [a,b]")
    parser.option(
        parser, "--mean", Literal["tasks", "groups", "none"], "tasks", "last mean: over tasks, or over groups' means"
    )
    parser.option(parser, "--paper", str | None, None, "a paper's numbers below ours, as of orthotune table")
    options = parser.read(arguments)
    check_new_file(options.out, options.overwrite)
    paper = paper_table(options.paper) if options.paper else None
    groups = groups_of(options)
    analyses = load_analyses(options.folders)
    analysed = [folder for folder in options.folders if has_analysis(folder)]
    runs = select(load_runs(options.folders, analysed), options.where or ())
    title = options.title or ", ".join(Path(folder).resolve().name for folder in options.folders)
    layout = Layout(groups=groups, mean=options.mean, paper=paper)
    write_text(Path(options.out), make_report(runs, title=title, layout=layout, analyses=analyses))
    print(f"written to {options.out}")
    return 0
