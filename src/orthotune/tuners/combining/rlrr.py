"""Combinations of RLRR adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from orthotune.tuners.combining.combination import Combination, Source, write_linear


@dataclass(frozen=True)
class Concatenate(Combination):
    """The exact sum of the changes: left = [w_1 left_1, w_2 left_2, ...] side by side, right = the right_i stacked.

    Without the residual, W* = S (.) W, the sum of the changes makes (1 - sum w_i + sum w_i S_i) (.) W, so a further
    rank, of 1 - sum w_i times ones, comes first. A side that is off counts as ones.
    """

    def fields(self, sources: Sequence[Source]) -> dict[str, Any]:
        extra = 0 if sources[0].config.residual else 1
        rank = extra + sum(source.config.r for source in sources)
        return {**super().fields(sources), "r": rank, "left": True, "right": True}

    def write(self, layer: Any, new: str, sources: Sequence[Source]) -> None:
        own = [source for source in sources if source.name in layer.adapter_options]
        factors = [layer.factors(source.name) for source in own]
        lefts = [source.weight * left for source, (left, _) in zip(own, factors, strict=True)]
        rights = [right for _, right in factors]
        if not sources[0].config.residual:
            rest = 1 - sum(source.weight for source in own)
            lefts.insert(0, torch.full_like(lefts[0][:, :1], rest))
            rights.insert(0, torch.ones_like(rights[0][:1]))
        left, right = torch.cat(lefts, dim=1), torch.cat(rights)
        # what is left of the rank, where the layer lacks an adapter, stays at its start: a right factor of zeros
        layer.rlrr_left[new][:, : left.shape[1]] = left
        layer.rlrr_right[new][: len(right)] = right
        write_linear(layer, "rlrr_shift", new, sources)
