"""Features after each block of a model, and how alike those of two models are (linear CKA)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.targets.kinds import head_names
from orthotune.tuners.blocks import block_lists

#: Inputs of a model: a tensor, or a dict of tensors by name.
Batch = Any
Forward = Callable[[Batch], Any]


@dataclass(frozen=True)
class Cka:
    """Linear CKA, in [0, 1], of the features after each block: ``values[i][j]`` of block i before adaptation with
    block j after it, both of ``blocks``, on so many ``samples``. Of a model without adapters, of it with itself.
    """

    blocks: tuple[str, ...]
    samples: int
    values: tuple[tuple[float, ...], ...]


def feature_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules after which features are taken: transformer blocks, else stages.

    Stages are the children of the model itself that have parameters, but for the head. InputError if there are none.
    """
    names = [name for blocks in block_lists(model).values() for name in blocks]
    heads = head_names(model)
    if not names:
        children = model.named_children()
        names = [n for n, child in children if n not in heads and next(child.parameters(), None) is not None]
    if not names:
        raise InputError(f"{type(model).__name__} has neither transformer blocks nor stages to take features from")
    return names


@torch.no_grad()
def features(model: nn.Module, names: Iterable[str], forward: Forward, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Return the output of each module of ``names``, (N, D) float64 on the CPU: its mean over tokens or positions.

    ``forward`` runs a batch through the model that ``model`` is, or is part of. An output that is a tuple counts with
    its first element; the tokens that a batch's ``attention_mask`` (N, L) leaves out do not count.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    mask: Tensor | None = None

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: kept[name].append(_pooled(output, mask))

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in kept]
    try:
        for batch in batches:
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in kept.items() if parts}


def _pooled(output: Any, mask: Tensor | None) -> Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    if mask is not None and hidden.shape[:-1] == mask.shape:
        return ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).double().cpu()
    if hidden.ndim == 4:  # channels last in Swin, where the two dimensions before them are the square image's
        last = hidden.shape[1] == hidden.shape[2] != hidden.shape[3]
        hidden = hidden.flatten(1, 2) if last else hidden.flatten(2).mT
    return (hidden.mean(1) if hidden.ndim == 3 else hidden).double().cpu()


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear CKA of features X (N, p) and Y (N, q) of the same N samples, 0 where one is constant.

    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred features; Kornblith et al., "Similarity of Neural Network
    Representations Revisited", ICML 2019 (arXiv 1905.00414), eq. 4 and table 1. With few samples it is biased upwards.
    """
    (k,), (one,) = _grams({"": x}), _grams({"": y})
    return (k * one).sum().item()


def compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Cka:
    """Return the CKA of all pairs of features of the same samples, by block."""
    first, second = _grams(before), _grams(after)
    values = torch.einsum("aij,bij->ab", first, second)
    samples = len(next(iter(before.values())))
    return Cka(tuple(before), samples, tuple(tuple(row) for row in values.tolist()))


def _grams(features: Mapping[str, Tensor]) -> Tensor:
    """Return the Gram matrices of centred features, (blocks, N, N), each of Frobenius norm 1 or zero."""
    grams = []
    for x in features.values():
        x = x.double()
        x = x - x.mean(0)
        gram = x @ x.T
        norm = gram.norm()
        grams.append(gram / norm if norm > 0 else gram)
    return torch.stack(grams)
