"""The layers of a model that have a weight matrix, each with its weight before and after adaptation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.analysis.projections import projections
from orthotune.exporting.changes import adapters_of, layer_change, plain_modules
from orthotune.targets.kinds import head_names, in_modules
from orthotune.tuners.aoft import AOFTLayer
from orthotune.tuners.fused import FusedProjection, fused_parts
from orthotune.tuners.goft import GOFTLayer
from orthotune.tuners.layer import AdapterLayer, base_of
from orthotune.tuners.module_host import ModuleHost

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass
class LayerWeights:
    """One layer; matrices are float64 (out, in), a convolution's kernels laid flat.

    Attributes:
        name: the layer's name in the plain model; a part of a fused projection has its own (``attn.qkv.q``).
        before: the weight without the adapter; None where the adapter is around a module that is not one layer.
        after: the weight with it; None where it does not change the weight.
        bias: the bias before and after, where it changes.
        projections: the adapter's matrices, by name.
        defect: the adapter's orthogonality defect, see :func:`orthotune.orthogonality_defect`.
        note: why an adapted layer has no weight after adaptation.
    """

    name: str
    before: Tensor | None
    after: Tensor | None = None
    bias: tuple[Tensor, Tensor] | None = None
    projections: dict[str, Tensor] = field(default_factory=dict)
    defect: float | None = None
    note: str | None = None


def block_of(name: str) -> int | None:
    """Return the index of the block that a layer is in, the first number in its name; None outside."""
    found = _NUMBER.search(name)
    return int(found[1]) if found else None


def kind_of(name: str) -> str:
    """Return a layer's name without the index of its block: ``blocks.#.attn.proj`` of ``blocks.3.attn.proj``."""
    found = _NUMBER.search(name)
    return f"{name[: found.start(1)]}#{name[found.end() :]}" if found else name


def single_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the plain model by name, the parts of split projections as layers of their own.

    Adapters around a whole module are yielded, and then the modules inside.
    """
    for name, module in plain_modules(model):
        name = f"{prefix}{name}"
        if isinstance(module, FusedProjection):
            yield from ((f"{name}.{part}", getattr(module, part)) for part in module.parts)
        else:
            yield name, module
        if isinstance(module, ModuleHost):
            yield from single_layers(module.get_base_layer(), f"{name}.")


def weights_of(model: nn.Module, adapter: str | None, base: nn.Module | None = None) -> Iterator[LayerWeights]:
    """Yield the layers of ``model`` in its order, without the head.

    With ``adapter``, that adapter says what a weight becomes; with ``base``, the weights of ``model`` are those after
    the adaptation of ``base``. InputError for merged adapters and quantised adapted layers.
    """
    root: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    heads = head_names(root)
    origin = {} if base is None else dict(single_layers(base))
    for name, module in single_layers(root):
        if in_modules(name, heads):
            continue
        if adapter is not None and adapter in adapters_of(module):
            found = _adapted(name, module, adapter)
            if found is not None:
                yield found
        elif (matrix := _matrix(base_of(module))) is not None:
            first = _matrix(origin.get(name)) if base is not None else None
            layer = LayerWeights(name, matrix if first is None else first, None if first is None else matrix)
            if first is not None and getattr(module, "bias", None) is not None:
                layer.bias = origin[name].bias.detach().double(), module.bias.detach().double()  # type: ignore
            yield from _parts(layer, base_of(module))


def _adapted(name: str, module: Any, adapter: str) -> LayerWeights | None:
    matrices = {key: value.detach() for key, value in projections(module, adapter).items()}
    defect = module.defect(adapter) if isinstance(module, GOFTLayer | AOFTLayer) else None
    before = None if isinstance(module, ModuleHost) else _matrix(base_of(module))
    if before is None and not isinstance(module, ModuleHost):
        return None  # a norm or an embedding: no matrix that maps vectors
    obstacle = module.merge_obstacle(adapter) if isinstance(module, AdapterLayer) else None
    if before is None or obstacle:
        return LayerWeights(name, before, projections=matrices, defect=defect, note=obstacle)
    change = layer_change(name, module, adapter, by_merging=True)
    bias = None
    if change.bias is not None and getattr(change.base, "bias", None) is not None:
        old = change.base.bias.detach().double()
        bias = old, old + change.bias
    return LayerWeights(name, before, before + change.weight, bias, matrices, defect)


def _matrix(module: Any) -> Tensor | None:
    """Return the weight of a linear layer or convolution as a matrix (out, in), float64; None for other modules."""
    if not isinstance(module, nn.Linear | Conv1D | nn.Conv2d) or not module.weight.is_floating_point():
        return None
    weight = module.weight.detach().double()
    return weight.T if isinstance(module, Conv1D) else weight.flatten(1)


def _parts(layer: LayerWeights, module: nn.Module) -> Iterator[LayerWeights]:
    """Yield the parts of a layer that is fused, or the layer itself."""
    assert layer.before is not None
    names = (
        fused_parts(layer.name, layer.before.shape[1], len(layer.before)) if not isinstance(module, nn.Conv2d) else ()
    )
    if not names:
        yield layer
        return
    for i, part in enumerate(names):

        def cut(tensor: Tensor, i: int = i) -> Tensor:
            return tensor.chunk(len(names))[i]

        yield LayerWeights(
            f"{layer.name}.{part}",
            cut(layer.before),
            None if layer.after is None else cut(layer.after),
            None if layer.bias is None else (cut(layer.bias[0]), cut(layer.bias[1])),
        )
