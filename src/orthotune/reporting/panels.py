"""A panel of the report: one plot, with the choices of what it shows."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Digits after rounding: what a plot can show.
DIGITS = 5


@dataclass(frozen=True)
class Choice:
    """What can be chosen of a panel: ``options`` maps values to what the reader sees."""

    name: str
    title: str
    options: Mapping[str, str]


@dataclass
class Panel:
    """One plot. A trace's ``meta`` says for which values of the choices it is shown, and in whose colour it is drawn.

    ``axes`` are layout settings that hold for one value of a choice, by ``"choice=value"``. ``legend`` asks for one
    of its own; elsewhere the names of methods with their colours stand above all plots.
    """

    key: str
    title: str
    caption: str
    choices: Sequence[Choice]
    traces: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, dict[str, Any]] = field(default_factory=dict)
    legend: bool = False
    wide: bool = False

    def checked(self) -> dict[str, Any]:
        """What the page's script needs, every trace and layout checked by plotly."""
        from plotly.graph_objects import Figure, Layout  # type: ignore[import-untyped]

        layout = dict(self.layout)
        for choice in self.choices:
            if len(choice.options) == 1:  # it is not on the page, so what holds for its option always does
                patch = self.axes.get(f"{choice.name}={next(iter(choice.options))}", {})
                layout |= {key: {**layout.get(key, {}), **value} for key, value in patch.items()}
        figure = Figure(self.traces, layout)
        for patch in self.axes.values():
            Layout(patch)
        return {
            "key": self.key,
            "choices": [choice.name for choice in self.choices if len(choice.options) > 1],
            "traces": [trace.to_plotly_json() for trace in figure.data],
            "layout": layout,
            "axes": self.axes,
            "legend": self.legend,
        }


def trace(method: str, shown: Mapping[str, str], role: str, **settings: Any) -> dict[str, Any]:
    """A trace of ``method`` (empty: of none), shown where the choices have these values; ``role`` says how it looks."""
    meta = {"method": method, "shown": dict(shown), "role": role}
    return {"type": "scatter", "name": plain(method), "meta": meta, **settings}


def plain(text: str) -> str:
    """Text for plotly, which reads some HTML in names."""
    return html.escape(text, quote=False)


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Numbers with :data:`DIGITS` digits; None for what JSON does not have."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{DIGITS}g}") for v in values]


def options(values: Iterable[str], titles: Mapping[str, str] | None = None) -> dict[str, str]:
    """Options of a choice, each value once."""
    return {value: (titles or {}).get(value, value.replace("_", " ")) for value in dict.fromkeys(values)}


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """An axis of a plot."""
    return {"title": {"text": title}, **settings}


def whole(values: Sequence[float]) -> dict[str, Any]:
    """Settings of an axis of whole numbers."""
    return {"tickformat": "d", **({"dtick": 1} if len(set(values)) <= 12 else {})}


def logarithmic(values: Sequence[float], left: float = 0.06) -> dict[str, Any]:
    """Settings of a logarithmic axis for ``values``: round ticks, the fewer the longer it is, room at the left."""
    low, high = math.log10(min(values)), math.log10(max(values))
    span = max(high - low, 0.3)
    steps = (1, 1.5, 2, 3, 4, 5, 7) if span < 0.8 else (1, 2, 5) if span < 2.5 else (1,)
    ticks = [float(f"{step * 10.0**power:.6g}") for power in range(-20, 21) for step in steps]
    low, high = low - left * span, high + 0.06 * span
    shown = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return {"type": "log", "range": [low, high], "tickvals": shown, "ticktext": [_tick(tick) for tick in shown]}


def _tick(value: float) -> str:
    return f"{value:g}" if value > 1e-4 else f"{value:.0e}".replace("e-0", "e-")
