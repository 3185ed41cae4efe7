"""A result as Markdown."""

from __future__ import annotations

from itertools import groupby
from typing import Any

MIB = 2**20
FLOOR = "floor"


def markdown(result: dict[str, Any], pictures: list[str]) -> str:
    """Return the whole text: where it comes from, a table per case or sweep, what was skipped, the pictures."""
    machine, settings = result["machine"], result["settings"]
    place = machine["gpu"] or f"{machine['processor']}, {machine['threads']} thread(s)"
    used = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number)
    parts = [
        f"# Speed: {place}, {settings['dtype']}",
        f"`{result['command']}`, {result['started']}, {used}.",
        "Times are ratios to the floor (the same without an adapter, frozen, the gradient flowing to its input): the "
        f"median of {settings['repeats']} ratios, each within one repeat, and their quartiles in brackets. Memory is "
        "in MiB: *saved* is what the forward keeps for the backward besides parameters, *peak* how far one step "
        "raises the memory in use.",
    ]
    for section, measurements in groupby(result["measurements"], key=lambda m: m["section"]):
        parts.append(f"## {section}")
        own = list(measurements)
        for sweep, group in groupby(own, key=lambda m: m["sweep"]):
            found = list(group)
            parts += [_sweep(found)] if sweep else [part for m in found for part in _case(m)]
        parts += _remarks(own)
    parts += [f"![{picture}]({picture})" for picture in pictures]
    return "\n\n".join(parts) + "\n"


def _case(measurement: dict[str, Any]) -> list[str]:
    floor = measurement["results"][FLOOR]
    layer = measurement["section"] == "layers"
    relative = "saved / input" if layer else "saved / floor"
    rows = []
    for name, result in measurement["results"].items():
        whole = result["input_bytes"] if layer else floor["saved_bytes"]
        rows.append(
            [
                measurement["contestants"][name]["label"],
                f"{result['parameters']:,}",
                ratio(result) if name != FLOOR else f"1 ({1000 * result['seconds_median']:.3g} ms)",
                f"{result['saved_bytes'] / MIB:.1f}",
                f"{result['saved_bytes'] / whole:.2f}" if whole else "",
                f"{result['peak_bytes'] / MIB:.1f}" if "peak_bytes" in result else "",
                f"{result['peak_bytes'] / floor['peak_bytes']:.2f}"
                if floor.get("peak_bytes") and "peak_bytes" in result
                else "",
            ]
        )
    head = ["", "parameters", "time / floor", "saved", relative, "peak", "peak / floor"]
    return [f"### {measurement['label']}", table(head, rows)]


def _sweep(measurements: list[dict[str, Any]]) -> str:
    """Return one table of a sweep: a row per contestant, a column per value."""
    names = dict.fromkeys(_series(name, m) for m in measurements for name in m["results"] if name != FLOOR)
    head = [measurements[0]["sweep"], *(f"{m['value']}" for m in measurements)]
    rows = []
    for series in names:
        cells = [next((r for n, r in m["results"].items() if _series(n, m) == series), None) for m in measurements]
        rows.append([series, *(ratio(cell) if cell else "" for cell in cells)])
    floors = [1000 * m["results"][FLOOR]["seconds_median"] for m in measurements]
    rows.append(["floor, ms", *(f"{value:.3g}" for value in floors)])
    return f"### {measurements[0]['sweep']}: {measurements[0]['title']}\n\n{table(head, rows)}"


def _series(name: str, measurement: dict[str, Any]) -> str:
    label: str = measurement["contestants"][name]["label"]
    return label.partition(" r=")[0] if measurement["sweep"] == "rank" else label


def _remarks(measurements: list[dict[str, Any]]) -> list[str]:
    """Return a list of what was skipped and what the libraries warned of, each once with the cases it was in."""
    found: dict[str, list[str]] = {}
    for measurement in measurements:
        lines = [f"{name} was skipped: {reason}" for name, reason in measurement["skipped"].items()]
        for name, result in measurement["results"].items():
            lines += [f"{name} warned: {note}" for note in result["notes"]]
            lines += [f"no peak of {name}: {result['peak_skipped']}"] if "peak_skipped" in result else []
        for line in lines:
            found.setdefault(line, []).append(measurement["label"])
    remarks = [
        f"* {line}" + ("" if len(labels) == len(measurements) else f" (in {'; '.join(labels)})")
        for line, labels in found.items()
    ]
    return ["\n".join(remarks)] if remarks else []


def ratio(result: dict[str, Any]) -> str:
    """Return ``1.23 (1.20-1.26)``."""
    first, third = result["ratio_quartiles"]
    return f"{result['ratio']:.2f} ({first:.2f}-{third:.2f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
