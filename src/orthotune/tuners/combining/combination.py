"""What a combination of adapters is, and the one that suits any method whose parameters enter linearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orthotune.errors import InputError

if TYPE_CHECKING:
    from orthotune.tuners.layer import AdapterLayer


@dataclass(frozen=True)
class Source:
    """One of the adapters that are combined: its name, configuration and weight."""

    name: str
    config: Any
    weight: float


@dataclass(frozen=True)
class Combination:
    """One way to combine adapters, an entry of a layer's ``combinations``.

    Attributes:
        must_agree: fields of the configuration that the adapters have to share.
        either: switches that are on in the result if they are in any of the adapters.
    """

    must_agree: tuple[str, ...] = ()
    either: tuple[str, ...] = ()

    def fields(self, sources: Sequence[Source]) -> dict[str, Any]:
        """Return the fields of the result's configuration that are not the first adapter's.

        Raises InputError if the configurations or the weights do not go with this combination.
        """
        return {name: any(getattr(source.config, name) for source in sources) for name in self.either}

    def write(self, layer: AdapterLayer, new: str, sources: Sequence[Source]) -> None:
        """Write the parameters of the adapter ``new`` of a layer, which are at a start that changes nothing.

        ``sources`` are all the adapters; the layer may lack some. Raises InputError, naming the layer, if the values
        of the parameters do not allow it.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(Combination):
    """p = p_0 + sum w_i (p_i - p_0) for each parameter, p_0 the layer's ``neutral`` value (0, or 1 for a scale).

    Exactly the weighted sum of the adapters' changes where the change is linear in p - p_0.
    """

    def write(self, layer: AdapterLayer, new: str, sources: Sequence[Source]) -> None:
        for name in layer.adapter_layer_names:
            write_linear(layer, name, new, sources)


def write_linear(layer: AdapterLayer, name: str, new: str, sources: Sequence[Source]) -> None:
    """Write one parameter of the adapter ``new`` as :class:`Linear` does; nothing if it has no such parameter."""
    store = getattr(layer, name)
    if new not in store:
        return
    neutral = layer.neutral(name, new)
    change = sum(s.weight * (layer.parameter(name, s.name) - neutral) for s in sources if s.name in store)
    store[new].copy_(change + neutral)


def check_finite(values: Any, layer: AdapterLayer, source: Source, reason: str) -> None:
    """Raise InputError, naming layer and adapter, unless all of a tensor's values are finite."""
    finite = values.isfinite()
    if not finite.all():
        raise InputError(
            f"adapter {source.name!r} cannot be combined with weight {source.weight:g}: in layer "
            f"{layer.module_name!r} {int((~finite.flatten(1).all(1)).sum())} of {len(values)} {reason}"
        )
