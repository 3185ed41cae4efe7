"""One linear layer, forward and backward; and the rotation alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from contestants import FLOOR, adapt
from torch import nn
from workload import Settings, Workload, size

from orthotune.ops import givens


@dataclass(frozen=True)
class LayerCase:
    """``nn.Linear`` with a bias on (1, tokens, in_features), with the gradient flowing to the input.

    The gradient of the output is given, so qGOFT's penalty, which belongs to a loss, is left out. Each contestant has
    a weight of its own, as the layers of a model do.
    """

    in_features: int
    out_features: int
    tokens: int

    @property
    def label(self) -> str:
        """Return the shape and the tokens."""
        return f"{self.in_features} → {self.out_features}, {self.tokens} tokens"

    def base(self, settings: Settings) -> nn.Linear:
        """Make the frozen layer."""
        torch.manual_seed(0)
        return nn.Linear(self.in_features, self.out_features, **settings.place())

    def workload(self, base: nn.Module, name: str, settings: Settings) -> Workload:
        """Put the adapter on a copy of the layer."""
        torch.manual_seed(1)
        host = nn.Sequential()
        host.add_module("layer", copy.deepcopy(base))
        _, notes = adapt(host, ["layer"], name, settings.authors)
        layer = host.get_submodule("layer").train()
        x = torch.randn(1, self.tokens, self.in_features, **settings.place()).requires_grad_()
        gradient = torch.randn(1, self.tokens, self.out_features, **settings.place())

        def step() -> None:
            layer(x).backward(gradient)

        return Workload(step, layer, size(x), (x,), notes)


@dataclass(frozen=True)
class RotationCase:
    """GOFT's rotation alone on (tokens, width), forward and backward; the floor copies the same bytes both ways."""

    width: int
    tokens: int

    @property
    def label(self) -> str:
        """Return the width and the tokens."""
        return f"rotation of width {self.width}, {self.tokens} tokens"

    def base(self, settings: Settings) -> nn.Module:
        """Make the angles."""
        torch.manual_seed(0)
        module = nn.Module()
        angles = torch.randn(givens.num_rotations(self.width), device=settings.device)
        module.register_parameter("angles", nn.Parameter(angles))
        return module

    def workload(self, base: nn.Module, name: str, settings: Settings) -> Workload:
        """Make the rotation, or the floor's copies."""
        torch.manual_seed(1)
        module = copy.deepcopy(base)
        x = torch.randn(self.tokens, self.width, **settings.place())
        gradient = torch.randn_like(x)
        if name == FLOOR:
            module.requires_grad_(False)

            def copies() -> None:
                forward, backward = x.clone(), gradient.clone()
                del forward, backward

            return Workload(copies, module, size(x))
        x.requires_grad_()

        def step() -> None:
            givens.apply(x, module.get_parameter("angles")).backward(gradient)

        return Workload(step, module, size(x), (x,))
