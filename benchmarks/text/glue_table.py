"""A result as Markdown."""

from __future__ import annotations

from typing import Any

from comparing import percent_column
from comparing import table as markdown
from glue import TASKS
from tables import ratio


def table(whole: dict[str, Any]) -> str:
    """Return a row per method: parameters, step time, and on each task the learning rate and the dev set's metric."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for result in whole["results"]:
        by_task.setdefault(result["task"], []).append(result)
    first = next(iter(by_task.values()))
    steps = whole["steps"]["steps"]
    head = ["method", "adapter parameters", "step time / frozen"]
    columns = [
        [result["method"] for result in first],
        [f"{result['parameters']['adapter']:,}" for result in first],
        [ratio(steps[result["method"]]) for result in first],
    ]
    for name, results in by_task.items():
        head += [f"{TASKS[name].title}: learning rate", f"{TASKS[name].title}: {TASKS[name].metric}, x 100"]
        columns += [[f"{r['lr']:g}" for r in results], percent_column([r["scores"] for r in results])]
    return markdown(head, list(zip(*columns, strict=True))) + "\n"
