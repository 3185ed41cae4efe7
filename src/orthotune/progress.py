"""Progress bars on a terminal, one line per message elsewhere, nothing inside ``quietly()``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """No bars and no messages inside, if ``quiet``."""
    token = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """``items`` under a progress bar that disappears when done; no bar when stderr is not a terminal."""
    disable = _quiet.get() or not sys.stderr.isatty()
    yield from tqdm(items, description, total, leave=False, disable=disable, dynamic_ncols=True)


def say(message: str) -> None:
    """One line on stderr, above any running bar."""
    if not _quiet.get():
        tqdm.write(message, file=sys.stderr)
