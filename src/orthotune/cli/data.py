"""``orthotune data``: what the protocols expect, what is there, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from orthotune.cli.parser import Parser
from orthotune.cli.tables import Rows, TableFormat, text
from orthotune.errors import InputError
from orthotune.methods import near
from orthotune.protocols import Protocol, Task, load_protocol, protocol_names

_ACTIONS = {"check": "problems of a data set", "list": "the tasks of the protocols, and which are there"}
_DESCRIPTION = """Look at data sets before they are trained on.

  orthotune data list --root FOLDER
  orthotune data check vtab:FOLDER/cifar
  orthotune data check --protocol vtab-1k --root FOLDER --only cifar100,svhn

Where data may come from (--data of orthotune fit, and here):
{sources}"""
_CHECK = """Check a data set, or all those of a protocol: counts, missing and broken images, labels, overlapping splits,
images that occur twice, lossy and resized copies. Exit status 1 where there is more than notes.

  orthotune data check vtab:FOLDER/cifar
  orthotune data check --protocol vtab-1k --root FOLDER"""
_COUNTS = ("classes", "train", "val", "test")


def run(arguments: list[str]) -> int:
    """Run ``orthotune data check`` or ``orthotune data list``."""
    if arguments and arguments[0] in _ACTIONS:
        return {"check": _check, "list": _list}[arguments[0]](arguments[1:])
    from orthotune.data import SOURCES

    sources = "\n".join(f"  {'' if n == 'folder' else n + ':'}{what}" for n, (_, what) in SOURCES.items())
    actions = "\n".join(f"  {name:<7}{what}" for name, what in _ACTIONS.items())
    parser = Parser("orthotune data", f"{_DESCRIPTION.format(sources=sources)}\n\nactions:\n{actions}")
    parser.add_argument("action", metavar="ACTION", help=", ".join(_ACTIONS))
    action = parser.read(arguments).action
    raise InputError(f"action {action!r} of orthotune data is unknown; {near(action, _ACTIONS)}")


def _list(arguments: list[str]) -> int:
    parser = Parser("orthotune data list", "The tasks of the protocols, with their counts, and which are there.")
    parser.option(parser, "--protocol", str | None, None, "only this one; a name, or a file")
    parser.option(parser, "--root", str | None, None, "folder to look for the data in")
    parser.option(parser, "--format", TableFormat, "table", "how to print the list")
    options = parser.read(arguments)
    _check_root(options.root)
    rows: Rows = []
    for name in [options.protocol] if options.protocol else protocol_names():
        protocol = load_protocol(name)
        for task in protocol.tasks.values():
            counts = [f"{task.expect[key]:,}" if key in task.expect else "" for key in _COUNTS]
            there = [] if options.root is None else ["yes" if _place(task, options.root).exists() else "no"]
            rows.append([protocol.name, task.name, task.data, *counts, *there])
    head = ["protocol", "task", "data", *_COUNTS, *([] if options.root is None else ["found"])]
    print(text(head, rows, options.format), end="")
    return 0


def _check_root(root: str | None) -> None:
    if root is not None and not Path(root).is_dir():
        raise InputError(f"--root {root!r} is not a folder")


def _place(task: Task, root: str) -> Path:
    """The file or folder of a task; for NAME@FOLDER the folder."""
    where = task.at(root).data
    where = where.partition(":")[2] or where
    return Path(where.rpartition("@")[2].partition("?")[0])


def _check(arguments: list[str]) -> int:
    parser = Parser("orthotune data check", _CHECK)
    parser.add_argument("data", nargs="?", type=str | None, default=None, metavar="DATA", help="FOLDER or SCHEME:WHERE")
    parser.option(parser, "--protocol", str | None, None, "check the tasks of this one; a name, or a file")
    parser.option(parser, "--root", str | None, None, "folder that holds the protocol's data")
    parser.option(parser, "--only", str | None, None, "tasks of the protocol, with commas between; all by default")
    parser.option(parser, "--quick", bool, False, "without reading every image")
    parser.option(parser, "--limit", int, 10, "problems of a kind to list of each data set; 0: all")
    parser.option(parser, "--format", TableFormat, "table", "how to print the list")
    options = parser.read(arguments)
    if options.limit < 0:
        raise InputError(f"--limit is {options.limit}; it must be at least 0")
    if (options.data is None) == (options.protocol is None):
        raise InputError("name either the data to check, or a --protocol whose data are in --root")
    if options.data is not None and (options.root is not None or options.only is not None):
        raise InputError("--root and --only go with --protocol")
    _check_root(options.root)
    from orthotune.data.check import check
    from orthotune.data.expected import known_task

    tasks = list(_tasks(load_protocol(options.protocol), options.root, options.only)) if options.protocol else []
    if options.data is not None:
        known = known_task(options.data)
        tasks = [(known.name if known else options.data, options.data, known.expect if known else {})]
    failed, rows = False, list[list[str]]()
    for name, data, expect in tasks:
        checked = check(data, expect, quick=options.quick)
        counts = ", ".join(f"{key} {count:,}" for key, count in checked.counts.items())
        severe = [p for p in checked.problems if p.severity != "note"]
        rows.append([name, "wrong" if severe else "ok", counts or "not read"])
        rows += [[name, p.severity, p.text] for p in checked.problems]
        failed |= bool(severe)
    print(text(["data", "", "what"], _limited(rows, options.limit), options.format), end="")
    return int(failed)


def _tasks(protocol: Protocol, root: str | None, only: str | None) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    names = [name.strip() for name in only.split(",")] if only is not None else list(protocol.tasks)
    for name in names:
        if name not in protocol.tasks:
            raise InputError(f"--only: protocol {protocol.name!r} has no task {name!r}; {near(name, protocol.tasks)}")
        task = protocol.tasks[name].at(root)
        yield name, task.data, task.expect


def _limited(rows: list[list[str]], limit: int) -> Rows:
    """At most ``limit`` rows of a data set with texts that differ in names and numbers only; 0: all."""
    kept: Rows = []
    for (name, _), group in groupby(rows, key=lambda row: (row[0], re.sub(r"'[^']*'|\d+", "", row[2]))):
        same = list(group)
        kept += same[: limit or None]
        left = len(same) - (limit or len(same))
        if left > 0:
            kept.append([name, "", f"... and {left:,} more like that (--limit 0 lists all)"])
    return kept
