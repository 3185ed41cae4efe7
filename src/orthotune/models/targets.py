"""Which modules a method adapts: named sets resolved for the architecture at hand.

Sets may be joined with ``+``: ``default`` (q, k, v, output projection and MLP of every block), ``qv``,
``attention``, ``mlp``, ``all-linear`` (every linear layer but the head), ``norms`` (every normalisation layer).
A fused ``qkv`` layer counts as three layers ``qkv.q``, ``qkv.k``, ``qkv.v``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from orthotune.errors import InputError
from orthotune.models.weights import in_modules
from orthotune.tuners.fused import FUSED_PARTS

SETS: dict[str, frozenset[str]] = {
    "default": frozenset({"q", "k", "v", "out", "mlp"}),
    "qv": frozenset({"q", "v"}),
    "attention": frozenset({"q", "k", "v", "out"}),
    "mlp": frozenset({"mlp"}),
    "all-linear": frozenset({"q", "k", "v", "out", "mlp", "linear"}),
    "norms": frozenset({"norm"}),
}
_PROJECTIONS = {
    "q": {"q", "query", "q_proj", "q_lin", "to_q"},
    "k": {"k", "key", "k_proj", "k_lin", "to_k"},
    "v": {"v", "value", "v_proj", "v_lin", "to_v"},
}
_ATTENTION = re.compile(r"(^|\.)(\w*attn|\w*attention)(\.|$)")
_MLP = re.compile(r"(^|\.)(mlp|ffn|feed_forward|intermediate|output|fc\d)(\.|$)")
_IN_BLOCK = re.compile(r"(^|\.)\d+\.")


def is_set(targets: object) -> bool:
    """Whether ``targets`` is a named set, or several joined with ``+`` (otherwise it is names or a regex)."""
    return isinstance(targets, str) and all(part in SETS for part in targets.split("+"))


def module_kinds(model: nn.Module, head: tuple[str, ...] = ()) -> dict[str, str]:
    """``{module name: kind}`` with kinds q, k, v, out, mlp, linear and norm; a fused qkv is listed as three."""
    kinds: dict[str, str] = {}
    for name, module in model.named_modules():
        if not name or in_modules(name, head):
            continue
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm"):
            kinds[name] = "norm"
        elif isinstance(module, nn.Linear):
            last = name.rpartition(".")[2]
            parts = FUSED_PARTS.get(last)
            kinds.update({f"{name}.{p}": p for p in parts} if parts else {name: _linear_kind(name, last)})
    return kinds


def _linear_kind(name: str, last: str) -> str:
    for kind, names in _PROJECTIONS.items():
        if last in names:
            return kind
    if not _IN_BLOCK.search(name):
        return "linear"
    if _ATTENTION.search(name):
        return "out"
    return "mlp" if _MLP.search(name) else "linear"


def resolve_targets(model: nn.Module, targets: str, head: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(target_modules, exclude_modules) for PEFT of the set(s) ``targets``: the shortest name endings that fit.

    InputError if the model has no module of that kind.
    """
    kinds = module_kinds(model, head)
    wanted_kinds = frozenset().union(*(SETS[part] for part in targets.split("+")))
    wanted = {name for name, kind in kinds.items() if kind in wanted_kinds}
    if not wanted:
        counts = sorted(set(kinds.values()))
        raise InputError(
            f"no module of {type(model).__name__} belongs to the target set {targets!r} (found kinds: "
            f"{', '.join(counts) or 'none'}); name the modules with --adapter.target_modules"
        )
    # a placeholder (timm's unused norms) matters to no tuner
    present = {n for n, m in model.named_modules() if n and not isinstance(m, nn.Identity)}
    others = (present | kinds.keys()) - wanted
    endings = sorted({_shortest_ending(name, others) for name in wanted})
    caught = {name for name in others if _ends(name, endings)}
    excluded = sorted({_shortest_ending(name, wanted) for name in caught})
    return endings, excluded


def _ends(name: str, endings: Iterable[str]) -> bool:
    return any(name == e or name.endswith("." + e) for e in endings)


def _shortest_ending(name: str, avoid: Iterable[str]) -> str:
    """The shortest dotted ending of ``name`` that no name in ``avoid`` shares (the whole name if none)."""
    parts = name.split(".")
    for i in range(len(parts) - 1, -1, -1):
        ending = ".".join(parts[i:])
        if not any(_ends(other, [ending]) for other in avoid):
            return ending
    return name
