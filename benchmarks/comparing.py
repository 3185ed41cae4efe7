"""What the comparisons of methods share: the search for a learning rate, and how a number over seeds is written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

LADDER = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]


def search(score: Callable[[float], Any], middle: float) -> tuple[float, dict[float, Any]]:
    """Return the learning rate with the highest score, and the scores by rate.

    Tried are three values of LADDER, of which the one nearest to ``middle`` is in the middle, and the next beyond
    while the best is at the edge of what was tried.
    """
    start = min(range(1, len(LADDER) - 1), key=lambda i: abs(math.log(LADDER[i] / middle)))
    tried = {i: score(LADDER[i]) for i in (start - 1, start, start + 1)}
    while True:
        best = max(sorted(tried), key=lambda i: tried[i])
        beyond = best + (best == max(tried)) - (best == min(tried))
        if beyond in tried or not 0 <= beyond < len(LADDER):
            return LADDER[best], {LADDER[i]: tried[i] for i in sorted(tried)}
        tried[beyond] = score(LADDER[beyond])


def percent(values: Sequence[float]) -> str:
    """Return ``72.8 ± 0.6``: mean and standard deviation over seeds of ``values``, times 100."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def percent_column(column: Sequence[Sequence[float]]) -> list[str]:
    """Return the cells of a column, one for the values of each row; the best mean is bold."""
    best = max(map(statistics.mean, column))
    return [f"**{percent(v)}**" if statistics.mean(v) == best else percent(v) for v in column]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
