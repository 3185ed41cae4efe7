"""What the results say, in a few sentences, and the facts that belong with them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.reporting.figures import ALL, Rows, task_scores
from orthotune.reporting.runs import Run


def sentences(rows: Rows) -> list[str]:
    """The best row, how clear its lead is, and the smallest that comes close."""
    scores = task_scores(rows)
    task = next(iter(scores), None)
    if task is None or not scores[task]:
        return []
    ranked = sorted(scores[task].items(), key=lambda item: -statistics.fmean(item[1]))
    name, values = ranked[0]
    place = f"mean over {len(scores) - 1} tasks" if task == ALL else f"on {task}"
    found = [f"Best: {name}, {_pm(values)} % {place}."]
    if len(ranked) > 1:
        found.append(_lead(values, *ranked[1]))
    smallest = _smallest(rows, dict(ranked), statistics.fmean(values))
    return [*found, *([smallest] if smallest else [])]


def _pm(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _lead(best: Sequence[float], name: str, values: Sequence[float]) -> str:
    ahead = statistics.fmean(best) - statistics.fmean(values)
    text = f"Next: {name}, {_pm(values)} %, {ahead:.1f} behind"
    if len(best) < 2 or len(values) < 2:
        return f"{text}; one seed does not say whether that is chance."
    spread = max(statistics.stdev(best), statistics.stdev(values))
    return f"{text}, " + ("within the spread over seeds." if ahead <= spread else "more than the spread over seeds.")


def _smallest(rows: Rows, scores: Mapping[str, Sequence[float]], best: float) -> str | None:
    """The row with the fewest trained parameters among those within two points of the best, if it is not the best."""
    near = []
    for name, values in scores.items():
        sizes = [size for run in rows[name] if (size := run.cost("parameters")) is not None]
        if sizes and statistics.fmean(values) >= best - 2:
            near.append((statistics.fmean(sizes), -statistics.fmean(values), name))
    if len(near) < 2 or -min(near)[1] == best:
        return None
    size, score, name = min(near)
    parameters = f"{1e6 * size:,.0f} parameters beside the head"
    return f"Smallest within two points of it: {name}, {-score:.1f} % with {parameters}."


def tiles(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(number, what it is) of the runs."""
    status = Counter(run.result.status for run in runs)
    seconds = sum(run.result.seconds for run in runs)
    counts = [
        (status["finished"], "run finished", "runs finished"),
        (status["failed"], "run failed", "runs failed"),
        (status["stopped"], "run stopped early", "runs stopped early"),
        (len({run.result.name for run in runs}), "method", "methods"),
        (len({run.result.task for run in runs}), "task", "tasks"),
        (len({run.result.seed for run in runs}), "seed", "seeds"),
    ]
    shown = [(f"{n:,}", one if n == 1 else many) for n, one, many in counts if n]
    return [*shown, (duration(seconds), "of computing")]


def duration(seconds: float) -> str:
    """``3.4 s``, ``12 min``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def environments(runs: Sequence[Run]) -> list[tuple[str, dict[str, int]]]:
    """(fact, {value: runs with it}) of the software and machines of the runs."""
    found: dict[str, Counter[str]] = {}
    for run in runs:
        if run.metrics is None:
            continue
        machine = {k: v for k, v in run.metrics.machine.items() if v is not None}
        for name, value in {**run.metrics.versions, **machine}.items():
            found.setdefault(name.replace("_", " "), Counter())[str(value or "not installed")] += 1
    return [(name, dict(counts.most_common())) for name, counts in found.items()]


def common_settings(runs: Sequence[Run]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the settings that all runs share, what differs of each)."""
    everything = [{**run.flat, "seed": run.result.seed} for run in runs]
    keys = list(dict.fromkeys(key for own in everything for key in own))
    shared = {
        key: everything[0][key]
        for key in keys
        if all(key in own and own[key] == everything[0].get(key) for own in everything)
    }
    return shared, [{key: value for key, value in own.items() if key not in shared} for own in everything]


def datasets(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Of each task the data: where, how many examples in each split, the fingerprint."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for run in runs:
        if run.metrics is None:
            continue
        data = run.metrics.data
        splits = {name: _size(data.get(name)) for name in ("train", "val", "test")}
        counts = ", ".join(f"{name} {count:,}" for name, count in splits.items() if count)
        sha256 = str(data.get("sha256") or "")[:12]
        where = str(run.result.config.get("data", ""))
        found[run.result.task, sha256] = {"task": run.result.task, "counts": counts, "sha256": sha256, "where": where}
    return list(found.values())


def _size(split: Any) -> int | None:
    return next((v for v in split.values() if isinstance(v, int)), None) if isinstance(split, dict) else None
