"""Combinations of AOFT adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orthotune.tuners.combining.combination import Combination, Source


@dataclass(frozen=True)
class Concatenate(Combination):
    """The exact sum of the changes: every term of every adapter, each with its own vectors and with l times w_i.

    A subtracted start is a term with -l; a smaller r is a larger one with zeros in l.
    """

    def fields(self, sources: Sequence[Source]) -> dict[str, Any]:
        return {
            **super().fields(sources),
            "num_updates": sum(source.config.num_terms for source in sources),
            "r": max(source.config.r for source in sources),
            "learn_scale": True,
        }

    def write(self, layer: Any, new: str, sources: Sequence[Source]) -> None:
        down, up, scale = (
            getattr(layer, name)[new].view(-1, size)
            for name, size in (
                ("aoft_down", layer.in_features),
                ("aoft_up", layer.out_features),
                ("aoft_scale", layer.adapter_options[new].r),
            )
        )
        terms = [
            (q_down, q_up, source.weight * values)
            for source in sources
            if source.name in layer.adapter_options
            for q_down, q_up, values in layer.terms(source.name)
        ]
        # the terms of adapters that this layer lacks stay at their start: l is zero
        for i, (q_down, q_up, values) in enumerate(terms):
            down[i], up[i] = q_down, q_up
            scale[i, : len(values)] = values
