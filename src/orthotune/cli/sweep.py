"""``orthotune sweep``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from textwrap import fill
from typing import Any

from orthotune.cli.parser import Parser
from orthotune.cli.tables import Rows, text
from orthotune.errors import InputError
from orthotune.studies import about, names, study

_DESCRIPTION = """Run methods x tasks x grid x seeds: choose on validation data, test once; here or on a cluster.

  orthotune sweep table.yaml --dry-run
  orthotune sweep table.yaml
  orthotune sweep table.yaml --address 10.0.0.1:6379
  orthotune sweep rlrr-vtab1k --root /data/vtab-1k      a table or an ablation of the papers
  orthotune sweep rlrr-vtab1k --print > mine.yaml       as a file to change
  orthotune sweep --list                                what there is of them

The same command continues a sweep that was interrupted: finished runs are not run again. Exit status 1 means that some
runs failed; their errors are in runs/ID/trial.json. docs/sweeps.md describes the file."""


def run(arguments: list[str]) -> int:
    """Run or continue a sweep, or say what it would run."""
    parser = Parser("orthotune sweep", _DESCRIPTION)
    parser.add_argument("config", type=str, nargs="?", metavar="CONFIG", help="YAML file of the sweep, or a ready one")
    parser.option(parser, "--list", bool, False, "list the ready ones: the papers' tables and ablations")
    parser.option(parser, "--print", bool, False, "print the file and do nothing")
    parser.option(parser, "--out", str | None, None, "folder of the sweep, instead of the file's out:")
    parser.option(parser, "--root", str | None, None, "folder of the data, instead of the file's root:")
    parser.option(parser, "--model", str | None, None, "the base model, instead of the file's model:")
    parser.option(parser, "--weights", str | None, None, "file of its weights, instead of the file's weights:")
    parser.option(parser, "--only", str | None, None, "tasks, with commas between, instead of the file's only:")
    parser.option(
        parser, "--address", str | None, None, "Ray cluster: auto or ip:port; otherwise processes of this machine"
    )
    parser.option(parser, "--dry-run", bool, False, "check everything and say what would be run")
    parser.option(parser, "--rerun-failed", bool, False, "run failed runs of an earlier start again")
    parser.option(parser, "--quiet", bool, False, "no progress")
    options = parser.read(arguments)
    if options.list:
        return _list()
    path = _path(options.config)
    if options.print:
        print(path.read_text(), end="")
        return 0
    from orthotune.experiments.config import SweepConfig
    from orthotune.training.config import read_yaml

    given = ("out", "root", "model", "weights")
    changes: dict[str, Any] = {k: v for k in given if (v := getattr(options, k)) is not None}
    if options.only is not None:
        changes["only"] = [name.strip() for name in options.only.split(",")]
    if options.address is not None:
        changes["ray"] = {**(read_yaml(path).get("ray") or {}), "address": options.address}
    config = SweepConfig.load(path, **changes)
    if options.dry_run:
        return _show(config, options.rerun_failed)
    from orthotune.experiments.sweep import run_sweep

    results = run_sweep(config, rerun_failed=options.rerun_failed, quiet=options.quiet)
    counts = Counter(result.status for result in results)
    print((config.out / "table.md").read_text(), end="")
    print(f"{', '.join(f'{count} {status}' for status, count in sorted(counts.items()))}; in {config.out}")
    for result in results:
        if result.status == "failed":
            print(f"failed: {result.task} {result.name} seed {result.seed} ({result.path}): {result.error}")
    return 1 if counts["failed"] else 0


def _path(config: str | None) -> Path:
    """The sweep's file: ``config`` itself, or that of the study of this name."""
    if config is None:
        raise InputError("CONFIG is missing: a YAML file of a sweep, or a name of orthotune sweep --list")
    if config.endswith((".yaml", ".yml")) or Path(config).is_file():
        return Path(config)
    return study(config)


def _list() -> int:
    for name in names():
        print(f"{name}\n{fill(about(name), 100, initial_indent='  ', subsequent_indent='  ')}")
    return 0


def _show(config: Any, rerun_failed: bool) -> int:
    from orthotune.experiments.plan import Plan
    from orthotune.experiments.schedule import Schedule

    plan = Plan(config)
    rows: Rows = [
        (
            cell.task.name,
            cell.row.name,
            "; ".join(f"{key}: {', '.join(map(str, values))}" for key, values in cell.row.grid.items()) or "-",
            str(len(cell.searches)),
            str(len(config.seeds)),
        )
        for cell in plan.cells
    ]
    print(text(("task", "row", "grid", "search runs", "final runs"), rows, "table"), end="")
    schedule = Schedule(plan, rerun_failed=rerun_failed)
    print(f"{schedule.total} runs, {schedule.known} of them done, in {config.out}")
    return 0
