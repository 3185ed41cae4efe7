"""Combinations of GOFT and qGOFT adapters; the maths of 2x2 blocks is in :mod:`orthotune.ops.givens`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import InputError
from orthotune.ops import givens
from orthotune.tuners.combining.combination import Combination, Source, check_finite


@dataclass(frozen=True)
class Compose(Combination):
    """R = R_k^{w_k} ... R_1^{w_1}, each weight +1 or -1 (the inverse): the trees of all, one after the other.

    ``scale="output"``: the diagonals are multiplied, or divided by. ``scale="input"`` has a diagonal between the
    rotations, which one adapter cannot hold, so it is refused.
    """

    def fields(self, sources: Sequence[Source]) -> dict[str, Any]:
        for source in sources:
            if source.weight not in (1, -1):
                raise InputError(
                    f"weights: {source.weight:g} of {source.name!r} does not go with combination_type 'compose', which "
                    "multiplies rotations (1) or their inverses (-1); 'geodesic' takes any weight"
                )
            if source.config.scale == "input" and (len(sources) > 1 or source.weight < 0):
                raise InputError(
                    f"adapter {source.name!r} has scale='input', R diag(s) W: a product of several, or an inverse, is "
                    "not of this form; combination_type 'geodesic' is possible"
                )
            if source.config.freeze == "norm" and source.weight < 0:
                raise InputError(
                    f"adapter {source.name!r} has freeze='norm', and the inverse of a block with columns of unit "
                    "norm is not such a block: weight -1 is not possible"
                )
        layout = [tree for source in reversed(sources) for tree in _layout(source)]
        powers, transposed = map(list, zip(*layout, strict=True))
        return {
            **super().fields(sources),
            "num_trees": len(layout),
            "permutations": None if powers == list(range(len(layout))) else powers,
            "transposed": transposed if any(transposed) else None,
        }

    def write(self, layer: Any, new: str, sources: Sequence[Source]) -> None:
        target = _stored(layer, new)
        end = 0
        for source in reversed(sources):
            start, end = end, end + source.config.num_trees * givens.num_rotations(layer.in_features)
            if source.name in layer.adapter_options:  # else its trees stay the identity
                target[start:end] = _trees(layer, source)
        if new in layer.goft_scale:
            _write_scale(layer, new, sources)


@dataclass(frozen=True)
class Geodesic(Combination):
    """In each plane, the angle sum w_i t_i; for qGOFT also the stretch exp(sum w_i log P_i).

    Each block is B_i = rotation(t_i) P_i, P_i symmetric and positive definite, |t_i| <= pi; GOFT's angles are those
    stored.
    With weights that sum to 1 it is a mean along the rotations' geodesic in that plane. A diagonal becomes the product
    of s_i^{w_i}.
    """

    def fields(self, sources: Sequence[Source]) -> dict[str, Any]:
        if sources[0].config.freeze == "norm":
            raise InputError(
                "combination_type 'geodesic' does not keep the columns of a block at unit norm, which freeze='norm' of "
                f"adapter {sources[0].name!r} asks for; 'compose' with weights of 1 does"
            )
        return super().fields(sources)

    def write(self, layer: Any, new: str, sources: Sequence[Source]) -> None:
        own = [source for source in sources if source.name in layer.adapter_options]
        if layer.adapter_options[new].quasi:
            weights = torch.tensor([source.weight for source in own], dtype=torch.float64)
            parts = zip(*(_polar(layer, source) for source in own), strict=True)
            angle, log_stretch = (torch.tensordot(weights.to(p[0].device), torch.stack(p), 1) for p in parts)
            _stored(layer, new).copy_(givens.from_polar(angle, log_stretch))
        else:
            _stored(layer, new).copy_(sum(source.weight * layer.rotations(source.name) for source in own))
        if new in layer.goft_scale:
            _write_scale(layer, new, sources)


def _layout(source: Source) -> Iterator[tuple[int, bool]]:
    """Yield the trees of an adapter, or of its inverse: the other way round and each transposed."""
    layout = source.config.layout
    return iter(layout) if source.weight > 0 else ((power, not transposed) for power, transposed in reversed(layout))


def _trees(layer: Any, source: Source) -> Tensor:
    """Return the rotations of an adapter to the power of its weight, +1 or -1, in the order of :func:`_layout`."""
    rotations = layer.rotations(source.name)
    if source.weight > 0:
        return rotations
    if source.config.quasi:
        rotations = givens.inverse_transpose(rotations.double())
        check_finite(rotations, layer, source, "blocks are singular, so that R has no inverse")
    return rotations.unflatten(0, (source.config.num_trees, -1)).flip(0).flatten(0, 1)


def _polar(layer: Any, source: Source) -> tuple[Tensor, Tensor]:
    angle, log_stretch = givens.polar(layer.rotations(source.name).double())
    check_finite(log_stretch, layer, source, "blocks have a determinant that is not positive, so no rotation in them")
    return angle, log_stretch


def _write_scale(layer: Any, new: str, sources: Sequence[Source]) -> None:
    """Write the product of s_i^{w_i}; a negative s_i goes with whole weights alone, zero with positive ones."""
    product = torch.ones_like(layer.goft_scale[new], dtype=torch.float64)
    for source in sources:
        if source.name in layer.adapter_options:
            power = layer.parameter("goft_scale", source.name, torch.float64) ** source.weight
            check_finite(power[:, None], layer, source, "entries of goft_scale have no such power")
            product *= power
    layer.goft_scale[new].copy_(product)


def _stored(layer: Any, adapter: str) -> Tensor:
    return layer.goft_block[adapter] if layer.adapter_options[adapter].quasi else layer.goft_theta[adapter]
