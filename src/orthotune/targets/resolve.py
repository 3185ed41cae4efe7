"""From a named set and a model to names that PEFT takes as ``target_modules``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from torch import nn

from orthotune.errors import InputError
from orthotune.targets.kinds import module_kinds, outside_adapters
from orthotune.targets.sets import SETS, is_set
from orthotune.tuners.fused import is_targeted


def target_modules(
    model: nn.Module,
    targets: str,
    *,
    exclude: Collection[str] | str | None = None,
    layers: Collection[int] | int | None = None,
    layers_pattern: Collection[str] | str | None = None,
    modules_to_save: Collection[str] | None = None,
    placeholders: bool = True,
) -> list[str] | str:
    """The modules of ``model`` in the named set ``targets``, as a value for any PEFT config's ``target_modules``.

    Args:
        model: the model, bare or with adapters on it.
        targets: a set, or several joined with ``+``: ``default`` (attention and MLP of every block; in a model without
            these, its convolutions), ``qv``, ``attention`` (q, k, v and output projection), ``out``, ``mlp``,
            ``mlp-in``, ``mlp-out``, ``all-linear``, ``norms``, ``convs``, ``stem`` (the patch embedding), ``qkv``,
            ``kv``. The head belongs to none.
        exclude: names, name endings or a regular expression: modules to leave out.
        layers: only modules inside blocks with these indices, counted as the first number in a module's name.
        layers_pattern: name of the list that ``layers`` counts in, such as ``blocks``.
        modules_to_save: names or endings of modules trained whole, which are left out.
        placeholders: whether the names must not match ``nn.Identity`` either, which timm has where a norm is left out;
            this package's methods pass such modules over, PEFT's do not.

    Returns the shortest name endings that match these modules and no others, sorted; where endings cannot tell them
    apart, a regular expression of full names. A timm ``qkv`` is given as ``q``, ``k`` and ``v``: for another PEFT
    method than this package's, call :func:`orthotune.split_fused_projections` before ``get_peft_model``.

    Raises InputError for an unknown set, a set of which the model has no module, and a layer that it does not have.
    """
    if not is_set(targets):
        raise InputError(f"target set {targets!r} is unknown; known: {', '.join(SETS)}, also joined with +")
    model = _without_peft(model)
    kinds = module_kinds(model)
    wanted_kinds = frozenset().union(*(SETS[name] for name in targets.split("+")))
    found = frozenset().union(*kinds.values())
    if "default" in targets.split("+") and not found & SETS["default"]:
        wanted_kinds |= SETS["convs"]
    selection = SimpleNamespace(target_modules=".*", exclude_modules=exclude, modules_to_save=modules_to_save)
    wanted = [name for name, own in kinds.items() if own & wanted_kinds and is_targeted(selection, name)]
    if not wanted:
        raise InputError(
            f"no module of {type(model).__name__} belongs to the target set {targets!r} (found kinds: "
            f"{', '.join(sorted(found)) or 'none'}); name the modules in target_modules"
        )
    if layers is not None:
        wanted = _in_layers(wanted, {layers} if isinstance(layers, int) else set(layers), layers_pattern)
    passed_over = () if placeholders else nn.Identity
    present = {name for name, module in outside_adapters(model) if not isinstance(module, passed_over)}
    return _endings(wanted, (present | kinds.keys()) - set(wanted))


def resolve_config(model: nn.Module, config: Any) -> None:
    """Put names in the place of a named set in a PEFT config, in place; ``layers_to_transform`` goes into the names."""
    options = {
        name: getattr(config, field, None)
        for name, field in (("layers", "layers_to_transform"), ("layers_pattern", "layers_pattern"))
    }
    names = target_modules(
        model,
        config.target_modules,
        exclude=getattr(config, "exclude_modules", None),
        modules_to_save=getattr(config, "modules_to_save", None),
        placeholders=False,
        **options,
    )
    config.target_modules = names if isinstance(names, str) else set(names)
    for field in ("layers_to_transform", "layers_pattern"):
        if getattr(config, field, None) is not None:
            setattr(config, field, None)


def _without_peft(model: nn.Module) -> nn.Module:
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _in_layers(names: list[str], layers: set[int], pattern: Collection[str] | str | None) -> list[str]:
    """Those of ``names`` inside the blocks with these indices."""
    lists = [r"[^.]*"] if not pattern else [pattern] if isinstance(pattern, str) else list(pattern)
    number = re.compile(rf"(?:^|\.)(?:{'|'.join(lists)})\.(\d+)\.")
    indices = {name: int(match[1]) for name in names if (match := number.search(name))}
    absent = sorted(layers - set(indices.values()))
    if absent:
        there = sorted(set(indices.values()))
        span = f"{there[0]} to {there[-1]}" if there else "none"
        raise InputError(f"layers_to_transform: there is no layer {absent[0]} (indices of this model: {span})")
    return [name for name, index in indices.items() if index in layers]


def _endings(wanted: Iterable[str], others: Iterable[str]) -> list[str] | str:
    """The shortest dotted endings that all of ``wanted`` and none of ``others`` have."""
    taken = {ending for name in others for ending in _endings_of(name)}
    endings = {next((e for e in _endings_of(name) if e not in taken), None) for name in wanted}
    if None in endings:
        return "|".join(map(re.escape, wanted))
    return sorted(e for e in endings if e is not None)


def _endings_of(name: str) -> Iterator[str]:
    """``c``, ``b.c``, ``a.b.c`` of ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
