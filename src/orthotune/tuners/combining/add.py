"""Adding an adapter that combines others: the checks, the new configuration, and the loop over the layers."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import ModulesToSaveWrapper

from orthotune.errors import InputError
from orthotune.methods import near
from orthotune.tuners.combining.combination import Combination, Source

if TYPE_CHECKING:
    from orthotune.tuners.layer import AdapterLayer
    from orthotune.tuners.model import AdapterModel

SELECTION = ("exclude_modules", "layers_to_transform", "layers_pattern")  # fields that narrow target_modules down


@torch.no_grad()
def add_weighted_adapter(
    model: AdapterModel,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str | None = None,
    modules_to_save_from: str | None = None,
) -> None:
    """See :meth:`orthotune.tuners.model.AdapterModel.add_weighted_adapter`."""
    sources = _sources(model, adapters, weights, adapter_name)
    combination_type, combination = _combination(model, combination_type)
    _check_agreement(sources, combination_type, combination)
    heads = _modules_to_save(model, sources, modules_to_save_from)
    names = {source.name for source in sources}
    layers: dict[str, Any] = {
        name: layer
        for name, layer in model.model.named_modules()
        if isinstance(layer, model.tuner_layer_cls) and names.intersection(layer.adapter_options)
    }
    saved = {module for source in sources for module in source.config.modules_to_save or ()}
    config = replace(
        sources[0].config,
        **combination.fields(sources),
        **_targets(sources, list(layers)),
        init_weights=True,
        modules_to_save=sorted(saved) or None,
    )
    for layer in layers.values():
        layer.check(config, layer.module_name, layer.in_features, layer.out_features)
    try:
        for layer in layers.values():
            _add_to_layer(layer, adapter_name, config, sources, combination_type)
    except BaseException:
        for layer in layers.values():
            layer.delete_adapter(adapter_name)
        raise
    model.peft_config[adapter_name] = config
    for wrapper, owner in heads:
        wrapper.update(adapter_name)
        wrapper.modules_to_save[adapter_name] = copy.deepcopy(wrapper.modules_to_save[owner]).requires_grad_(False)


def _sources(model: AdapterModel, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> list[Source]:
    known = model.peft_config
    if adapter_name in known:
        raise InputError(f"adapter_name={adapter_name!r} is taken: delete that adapter, or choose another name")
    if isinstance(adapters, str) or not adapters:
        raise InputError(f"adapters={adapters!r} is not a list of the names of at least one adapter")
    if len(weights) != len(adapters):
        raise InputError(f"there are {len(weights)} weights for {len(adapters)} adapters: give one weight for each")
    sources = []
    for name, weight in zip(adapters, weights, strict=True):
        if name not in known:
            raise InputError(f"adapter {name!r} is not in this model; {near(name, known)}")
        try:
            value = float(weight)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"weights: {weight!r}, of adapter {name!r}, is not a finite number")
        config = known[name]
        if config.bias != "none":
            raise InputError(
                f"adapter {name!r} has bias={config.bias!r}: it trains the base model's own biases, of which there is "
                "one copy only, so it cannot be combined"
            )
        sources.append(Source(name, config, value))
    return sources


def _combination(model: AdapterModel, combination_type: str | None) -> tuple[str, Combination]:
    known = model.tuner_layer_cls.combinations
    method = type(model).__name__.removesuffix("Model")
    if not known:
        raise InputError(f"{method} adapters cannot be combined into one; several can be active at once")
    name = next(iter(known)) if combination_type is None else combination_type
    if name not in known:
        raise InputError(
            f"combination_type={combination_type!r} is not one of {method}'s ({', '.join(known)}); {near(name, known)}"
        )
    return name, known[name]


def _check_agreement(sources: Sequence[Source], combination_type: str, combination: Combination) -> None:
    first = sources[0]
    for field in combination.must_agree:
        for other in sources[1:]:
            values = getattr(first.config, field), getattr(other.config, field)
            if values[0] != values[1]:
                raise InputError(
                    f"combination_type {combination_type!r} needs adapters with the same {field}: {first.name!r} has "
                    f"{field}={values[0]!r} and {other.name!r} has {field}={values[1]!r}"
                )


def _modules_to_save(
    model: AdapterModel, sources: Sequence[Source], chosen: str | None
) -> list[tuple[ModulesToSaveWrapper, str]]:
    """Return the modules trained whole that the new adapter gets a copy of, and whose."""
    names = list(dict.fromkeys(source.name for source in sources))
    if chosen is not None and chosen not in names:
        raise InputError(f"modules_to_save_from={chosen!r} is not one of adapters: {', '.join(names)}")
    found = []
    for name, module in model.model.named_modules():
        if not isinstance(module, ModulesToSaveWrapper):
            continue
        owners = [owner for owner in names if owner in module.modules_to_save]
        if len(owners) > 1 and chosen not in owners:
            raise InputError(
                f"{' and '.join(map(repr, owners))} each have their own {name!r} (modules_to_save), which are not "
                "combined: name the adapter whose to take as modules_to_save_from"
            )
        if owners:
            found.append((module, owners[0] if len(owners) == 1 else str(chosen)))
    return found


def _targets(sources: Sequence[Source], layers: Sequence[str]) -> dict[str, Any]:
    """Return the fields that select exactly ``layers``, the union of the adapters' layers.

    As PEFT has it, the union of ``target_modules``; where the adapters select in different ways, the layers' names.
    """
    configs = [source.config for source in sources]
    targets = [config.target_modules for config in configs]
    if all(getattr(config, name) == getattr(configs[0], name) for config in configs for name in SELECTION):
        if all(target == targets[0] for target in targets):
            return {}
        if not any(isinstance(target, str) for target in targets):
            return {"target_modules": set().union(*targets)}
    return {**dict.fromkeys(SELECTION), "target_modules": "|".join(map(re.escape, layers))}


def _add_to_layer(layer: AdapterLayer, new: str, config: Any, sources: Sequence[Source], combination_type: str) -> None:
    trainable = {parameter: parameter.requires_grad for parameter in layer.parameters()}
    layer.update_layer(new, config)
    tensors = [tensor for source in sources for tensor in layer.adapter_tensors(source.name)]
    for parameter in layer.adapter_tensors(new):
        parameter.data = parameter.data.to(reduce(torch.promote_types, (tensor.dtype for tensor in tensors)))
    layer.combinations[combination_type].write(layer, new, sources)
    for parameter in layer.parameters():
        parameter.requires_grad_(trainable.get(parameter, False))
