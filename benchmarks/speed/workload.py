"""What is measured: a step to repeat, and the cases that build one for each contestant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 2
    repeats: int = 15
    warmup: int = 3
    peak: bool = True
    authors: str | None = None

    def place(self) -> dict[str, Any]:
        """Return device and dtype as keyword arguments of torch's functions."""
        return {"device": torch.device(self.device), "dtype": getattr(torch, self.dtype)}


@dataclass
class Workload:
    """One contestant of one case, ready to run.

    ``step`` is what is timed; it leaves gradients behind, which ``reset`` clears. ``module`` owns the parameters and
    buffers, ``input_bytes`` is the size of its input.
    """

    step: Callable[[], None]
    module: nn.Module
    input_bytes: int
    inputs: tuple[Tensor, ...] = ()
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._leaves = [*self.inputs, *(p for p in self.module.parameters() if p.requires_grad)]

    def reset(self) -> None:
        """Drop all gradients."""
        for leaf in self._leaves:
            leaf.grad = None

    def trainable(self) -> int:
        """Count the numbers that are trained."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)


class Case(Protocol):
    """A shape or a model, on which the contestants meet. A dataclass, so that another process can build it."""

    @property
    def label(self) -> str:
        """Say what it is, in a table's heading."""

    def base(self, settings: Settings) -> nn.Module:
        """Make the frozen part, once."""

    def workload(self, base: nn.Module, name: str, settings: Settings) -> Workload:
        """Make the contestant ``name`` over ``base``, which stays as it is."""


def size(x: Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return x.numel() * x.element_size()
