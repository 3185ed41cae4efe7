"""Going through a model's modules without those that adapters brought."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def modules_outside(model: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's modules by name, leaving out the root and what lies inside modules of these ``kinds``."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name and not name.startswith(inside or "\0"):
            if isinstance(module, kinds):
                inside = (*inside, f"{name}.")
            yield name, module
