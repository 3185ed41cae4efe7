"""Several adapters in one batch: ``model(x, adapter_names=[...])`` names an adapter for each sample, as PEFT has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from orthotune.errors import InputError
from orthotune.tuners.layer import BASE, AdapterLayer


@contextmanager
def adapter_names(model: nn.Module, names: Sequence[str] | None, num_beams: int | None = None) -> Iterator[None]:
    """Hand each layer of ``model`` the name of every sample's adapter, within this context.

    Raises InputError in training mode, for a name that no layer has, and for beam search, which repeats samples.
    """
    if names is None:
        yield
        return
    if model.training:
        raise InputError("adapter_names needs the model in evaluation mode: call model.eval() first")
    if (num_beams or 1) > 1:
        raise InputError(f"adapter_names does not go with beam search, got num_beams={num_beams}; set num_beams=1")
    layers = [m for m in model.modules() if isinstance(m, AdapterLayer)]
    known = {BASE}.union(*(layer.adapter_options for layer in layers))
    unknown = sorted(set(names) - known)
    if unknown:
        raise InputError(f"adapter_names has {', '.join(unknown)}, which the model has not: {', '.join(sorted(known))}")
    # modules trained beside the adapters (a new head) are chosen by sample too
    takers = [*layers, *(m for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper))]

    def hand_over(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": list(names)}

    handles = [module.register_forward_pre_hook(hand_over, with_kwargs=True) for module in takers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
