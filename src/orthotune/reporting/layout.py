"""Which table is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orthotune.papers.results import PaperTable
from orthotune.reporting.runs import Cost


@dataclass(frozen=True)
class Layout:
    """What the rows and columns of a table are, and what stands beside the cells.

    ``rows`` and ``columns`` name fields of a result (``name``, ``method``, ``task``, ``seed``) or settings (``lr``,
    ``adapter.r``). Without ``metrics`` a cell is the run's own score. ``groups`` maps a group of columns to its
    members; its mean follows them. ``mean`` is over all columns, or over the groups' means; ``partial`` also gives
    means of which a part is missing, and marks them.
    """

    rows: Sequence[str] = ("name",)
    columns: str = "task"
    metrics: Sequence[str] = ()
    phase: Literal["final", "search"] = "final"
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    mean: Literal["tasks", "groups", "none"] = "tasks"
    partial: bool = False
    costs: Sequence[Cost] = ("parameters",)
    paper: PaperTable | None = None
    decimals: int = 1
    title: str = ""
