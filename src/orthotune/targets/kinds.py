"""What each module of a model is for: a query, an MLP's first layer, a norm, ... told by type, name and shape.

Kinds: ``q``, ``k``, ``v`` (a fused layer that can be split counts as its parts, ``qkv.q``, ...), ``qkv`` (a fused
layer that cannot), ``out`` (an attention's output projection), ``mlp-in``, ``mlp-out`` (the layers into and out of the
hidden width of a block's feed-forward network; a gate is ``mlp-in``), ``linear`` (any other linear layer: poolers,
patch merging, position biases, routers), ``norm``, ``conv`` and ``stem`` (a convolution before the blocks). A
convolution with groups has none, as no method here adapts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from orthotune.tuners.fused import FusedProjection, fused_parts
from orthotune.tuners.hosts import Conv2dHost, LinearHost, NormHost
from orthotune.tuners.layer import base_of
from orthotune.tuners.supported import UnsupportedLayerError, host_of
from orthotune.tuners.traversal import modules_outside

_PROJECTIONS = {
    kind: re.compile(
        rf"({kind}|{word}|{kind}_proj|{word}_proj|{kind}_lin|to_{kind}|w{kind}|{kind}_[ab]_proj|{kind}_attn)$"
    )
    for kind, word in (("q", "query"), ("k", "key"), ("v", "value"))
}
_FUSED = re.compile(
    r"(w?qkv|c_attn|qkv_proj|to_kv|kv_proj|kv_[ab]_proj\w*|query_key_value|in_proj_qkvz?)$", re.IGNORECASE
)
_OUT = re.compile(r"(^|\.)(proj|out|o|o_proj|out_proj|c_proj|dense|wo|out_lin|proj_out|to_out(\.0)?)$", re.IGNORECASE)
_POSITION = re.compile(r"(^|_)(cpb|relpos|pos|position|positional)(_|$)")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|densereludense|expert|^ff$", re.IGNORECASE)
# layers of a feed-forward network that lie in the block itself, or (BERT) in two modules of their own
_BARE_MLP = re.compile(r"(^|\.)((fc|lin|linear|pwconv|w)_?\d|ffn(_output)?|(intermediate|output)\.dense)$")
_ROUTER = re.compile(r"(^|\.)(gate|router|\w*expert_gate)$")
_BLOCK = re.compile(r"\d+$|\w+_\d+$|layer\d+$")

#: top-level modules that are heads by convention
_HEADS = re.compile(r"(heads?|head_dist|(pre_)?classifier|score|fc|lm_head|qa_outputs|cls|(classification|qa)_head)$")


def module_kinds(model: nn.Module) -> dict[str, frozenset[str]]:
    """``{module name: kinds}`` of everything an adapter can go on, but for the head; in order of definition.

    A module has one kind, but for convolutions: ``stem``, ``mlp-in`` or ``mlp-out`` (1x1 ones) come beside ``conv``.
    """
    heads = head_names(model)
    kinds: dict[str, frozenset[str]] = {}
    linears: dict[str, tuple[int, int]] = {}
    for name, module in outside_adapters(model):
        host = None if in_modules(name, heads) else _host(module)
        if host is None:
            continue
        if issubclass(host, NormHost):
            kinds[name] = frozenset({"norm"})
        elif issubclass(host, LinearHost):
            linears[name] = host.matrix_shape(base_of(module))
        elif issubclass(host, Conv2dHost):
            kinds[name] = frozenset({"conv"} if _in_block(name) else {"conv", "stem"})
            if base_of(module).kernel_size == (1, 1) and _unit(name, _MLP):
                linears[name] = host.matrix_shape(base_of(module))
    for name, kind in _linear_kinds(linears).items():
        if name not in kinds:
            kinds[name] = frozenset({kind})
        elif kind in ("mlp-in", "mlp-out"):
            kinds[name] |= {kind}
    return kinds


def _linear_kinds(shapes: dict[str, tuple[int, int]]) -> dict[str, str]:
    """The kind of each linear layer, given (in_features, out_features); of its parts where it can be split."""
    any_block = any(_in_block(name) for name in shapes)
    kinds: dict[str, str] = {}
    attention: dict[str, list[str]] = {}
    mlp: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        last, unit = name.rpartition(".")[2], _unit(name, _ATTENTION)
        projection = next((k for k, pattern in _PROJECTIONS.items() if pattern.match(last)), None)
        parts = fused_parts(name, *shape)
        kinds[name] = "linear"
        if (any_block and not _in_block(name)) or any(_POSITION.search(s) for s in name.split(".")):
            continue
        if parts:
            del kinds[name]
            kinds.update((f"{name}.{part}", part) for part in parts)
        elif projection or _FUSED.match(last):
            kinds[name] = projection or "qkv"
        elif unit:
            attention.setdefault(unit, []).append(name)
        elif not _ROUTER.search(name) and (_unit(name, _MLP) or _BARE_MLP.search(name)):
            mlp.setdefault(_unit(name, _MLP) or _block(name), []).append(name)
    for names in attention.values():
        kinds.update(dict.fromkeys(names if len(names) == 1 else filter(_OUT.search, names), "out"))
    for names in mlp.values():
        kinds.update(_mlp_kinds({name: shapes[name] for name in names}))
    return kinds


def _mlp_kinds(shapes: dict[str, tuple[int, int]]) -> dict[str, str]:
    """Which layers of one feed-forward network lead into its hidden width, and which out of it."""
    width = next(iter(shapes.values()))[0]
    into = [name for name, (i, o) in shapes.items() if i == width != o]
    out = [name for name, (i, o) in shapes.items() if i != width == o]
    if not (into and out):  # a hidden width that is the block's: only the order tells
        *into, last = shapes
        out = [last]
    return {**dict.fromkeys(into, "mlp-in"), **dict.fromkeys(out, "mlp-out")}


def _host(module: nn.Module) -> type[Any] | None:
    if isinstance(module, FusedProjection):
        return None
    try:
        return host_of(base_of(module), "")
    except UnsupportedLayerError:
        return None


def _in_block(name: str) -> bool:
    return any(_BLOCK.match(segment) for segment in name.split(".")[:-1])


def _block(name: str) -> str:
    """``name`` up to its innermost block: ``encoder.layer.0`` of ``encoder.layer.0.output.dense``."""
    parents = name.split(".")[:-1]
    last = max((i for i, segment in enumerate(parents) if _BLOCK.match(segment)), default=-1)
    return ".".join(parents[: last + 1])


def _unit(name: str, pattern: re.Pattern[str]) -> str:
    """``name`` up to its first module that matches ``pattern``, further to a numbered one below; "" if none does."""
    parents = name.split(".")[:-1]
    first = next((i for i, segment in enumerate(parents) if pattern.search(segment)), None)
    return "" if first is None else max(".".join(parents[: first + 1]), _block(name), key=len)


def in_modules(name: str, modules: tuple[str, ...]) -> bool:
    """Whether the tensor or module ``name`` is, or lies in, one of ``modules``."""
    return any(name == m or name.startswith(m + ".") for m in modules)


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The modules that turn features into the task's output: timm's classifier, all outside a transformers backbone."""
    names = {name: module for name, module in model.named_modules() if name}
    wanted: set[int] = set()
    is_timm = False
    for module in model.modules():
        get_classifier: Any = getattr(module, "get_classifier", None)
        if callable(get_classifier):
            found = get_classifier()
            is_timm = is_timm or module is model
            wanted |= {id(m) for m in (found if isinstance(found, tuple) else (found,))}
    heads = {name for name, module in names.items() if id(module) in wanted}
    if not is_timm:
        heads |= {name for name, _ in model.named_children() if _HEADS.match(name)}
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and isinstance(getattr(model, prefix, None), nn.Module):
        heads |= {name for name, _ in model.named_children() if name != prefix}
    get_output: Any = getattr(model, "get_output_embeddings", None)
    if callable(get_output):
        output = get_output()
        heads |= {name for name, module in names.items() if module is output}
    return tuple(sorted(heads))


def outside_adapters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's modules by name, without the root, what lies inside adapter layers, and modules_to_save."""
    for name, module in modules_outside(model, BaseTunerLayer, AuxiliaryTrainingWrapper):  # type: ignore[arg-type]
        if not isinstance(module, AuxiliaryTrainingWrapper):
            yield name, module
