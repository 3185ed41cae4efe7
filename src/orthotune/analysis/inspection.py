"""``inspect``: everything that is measured of a model and its adapter, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import nn

from orthotune.analysis.features import Batch, Cka, compare, feature_modules, features
from orthotune.analysis.layers import LayerWeights, block_of, kind_of, single_layers, weights_of
from orthotune.analysis.matrices import Matrix, Movement, describe, movement, svd
from orthotune.errors import InputError
from orthotune.progress import track


@dataclass(frozen=True)
class LayerAnalysis:
    """What was measured of one layer.

    Attributes:
        name: in the plain model; of a fused projection such as ``qkv`` every part by itself.
        block, kind: the index of its block, which is the first number in the name, and the name without it.
        weight: the weight before adaptation; None for a module that has none of its own.
        adapted: the weight after it; None where it is the same.
        projections: the adapter's matrices.
        movement: how far the weight moved; None where ``adapted`` is.
        defect: orthogonality defect of GOFT's and qGOFT's rotation and AOFT's projections; else None.
        note: why an adapted layer has no adapted weight.
    """

    name: str
    block: int | None
    kind: str
    weight: Matrix | None
    adapted: Matrix | None
    projections: dict[str, Matrix]
    movement: Movement | None
    defect: float | None
    note: str | None


@dataclass(frozen=True)
class Analysis:
    """What :func:`inspect` found. ``settings`` are its arguments, with which the sampled parts can be repeated."""

    settings: dict[str, Any]
    layers: tuple[LayerAnalysis, ...]
    cka: Cka | None


def inspect(
    model: nn.Module,
    adapter_name: str = "default",
    *,
    base: nn.Module | None = None,
    layers: str | None = None,
    top: int = 8,
    limit: int = 4096,
    seed: int = 0,
    batches: Iterable[Batch] | None = None,
    forward: Callable[[nn.Module, Batch], Any] | None = None,
) -> Analysis:
    """Measure the weights of a model before and after adaptation, and the adapter's own matrices.

    Covered are linear layers and convolutions outside the head, and modules that adapters are around; all is computed
    in float64 on the weights' device. A layer's change is exact for this package's methods and LoRA, and what merging
    a copy of the layer changes for other methods of PEFT.

    Args:
        model: a model, bare or with PEFT adapters, none of them merged; left as it is.
        adapter_name: which adapter to look at, where there are adapters.
        base: for a model that was trained without an adapter, the model that it was made from.
        layers: a regular expression that a layer's name must contain.
        top: how many leading singular vectors the overlaps of subspaces are of.
        limit: of a matrix with more rows (columns) than this, so many are drawn to measure angles between.
        seed: for that draw.
        batches: inputs of the model, tensors or dicts of them; with them the features after each block are compared
            (CKA).
        forward: how a batch goes through a model; by default it is called with it.

    Raises InputError for an unknown adapter, a range or a regular expression that cannot be used, and layers whose
    change cannot be computed: merged or quantised ones.
    """
    adapter = _adapter(model, adapter_name)
    if adapter is not None and base is not None:
        raise InputError("base goes with a model without adapters: one with adapters has its own")
    for name, value, least in (("top", top, 1), ("limit", limit, 2)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    wanted = _pattern(layers)
    cka = None
    if batches is not None:
        cka = _cka(model, adapter, base, list(batches), forward or (lambda m, x: m(x)))
    count = sum(1 for _ in single_layers(model))
    found = [
        _measure(layer, top, limit, seed)
        for layer in track(weights_of(model, adapter, base), "measuring", count)
        if wanted.search(layer.name)
    ]
    if not found:
        which = f"that match layers={layers!r}" if layers is not None else "with a weight matrix"
        raise InputError(f"the model has no layers {which}")
    settings = {"adapter": adapter, "layers": layers, "top": top, "limit": limit, "seed": seed}
    return Analysis(settings, tuple(found), cka)


def _adapter(model: nn.Module, name: str) -> str | None:
    configs = getattr(model, "peft_config", None) if isinstance(model, PeftModel) else None
    if not configs:
        return None
    if name not in configs:
        raise InputError(f"the model has no adapter {name!r}; it has: {', '.join(configs)}")
    return name


def _pattern(layers: str | None) -> re.Pattern[str]:
    try:
        return re.compile(layers or "")
    except re.error as error:
        raise InputError(f"layers={layers!r} is no regular expression: {error}") from error


def _measure(layer: LayerWeights, top: int, limit: int, seed: int) -> LayerAnalysis:
    weight = adapted = moved = None
    if layer.before is not None:
        before = svd(layer.before)
        weight = describe(layer.before, before[1], limit=limit, seed=seed)
        if layer.after is not None:
            after = svd(layer.after)
            adapted = describe(layer.after, after[1], limit=limit, seed=seed)
            moved = movement(layer.before, layer.after, before, after, layer.bias, top)
    return LayerAnalysis(
        name=layer.name,
        block=block_of(layer.name),
        kind=kind_of(layer.name),
        weight=weight,
        adapted=adapted,
        projections={
            name: describe(matrix, svd(matrix)[1], limit=limit, seed=seed) for name, matrix in layer.projections.items()
        },
        movement=moved,
        defect=layer.defect,
        note=layer.note,
    )


def _cka(
    model: nn.Module,
    adapter: str | None,
    base: nn.Module | None,
    batches: list[Batch],
    forward: Callable[[nn.Module, Batch], Any],
) -> Cka:
    if isinstance(model, PeftModel) and model.active_adapters != [adapter]:
        active = ", ".join(model.active_adapters)
        raise InputError(
            f"the features are those of the active adapters ({active}): call set_adapter({adapter!r}) first"
        )
    root: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    names = feature_modules(root)
    training = model.training
    model.eval()
    try:
        after = features(root, names, lambda x: forward(model, x), batches)
        if adapter is None and base is None:
            return compare(after, after)
        origin = root if base is None else base.eval()
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            before = features(origin, names, lambda x: forward(model if base is None else origin, x), batches)
        return compare(before, after)
    finally:
        model.train(training)
