"""What the protocols say about data: the task that a source is, by its place."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orthotune.protocols import Task


@cache
def _tasks() -> tuple[Task, ...]:
    """The tasks of every protocol of this package."""
    from orthotune.protocols import load_protocol, protocol_names  # they read the settings of runs, which read data

    return tuple(task for name in protocol_names() for task in load_protocol(name).tasks.values())


def known_task(data: str) -> Task | None:
    """The task of a protocol whose data are at a place like ``data``, whatever the root folder; None for others."""
    for task in _tasks():
        scheme, _, place = task.data.partition("{root}")
        if place and re.fullmatch(re.escape(scheme) + "(.*)" + re.escape(place), _with_root(data)):
            return task
    return None


def _with_root(data: str) -> str:
    """``vtab:cifar`` as ``vtab:./cifar``."""
    scheme, colon, where = data.rstrip("/").partition(":")
    return data.rstrip("/") if "/" in where else f"{scheme}{colon}./{where}"
