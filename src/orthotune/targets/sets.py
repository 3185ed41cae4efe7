"""The names of the sets; imports nothing that adapts a layer, so that configurations can know them."""

from __future__ import annotations

import difflib

from orthotune.errors import InputError

_ATTENTION = frozenset({"q", "k", "v", "qkv", "out"})
_MLP = frozenset({"mlp-in", "mlp-out"})

#: set -> the kinds of module in it (see ``orthotune.targets.kinds``)
SETS: dict[str, frozenset[str]] = {
    "default": _ATTENTION | _MLP,  # in a model that has none of these, its convolutions
    "qv": frozenset({"q", "v"}),
    "kv": frozenset({"k", "v"}),
    "qkv": frozenset({"q", "k", "v", "qkv"}),
    "attention": _ATTENTION,
    "out": frozenset({"out"}),
    "mlp": _MLP,
    "mlp-in": frozenset({"mlp-in"}),
    "mlp-out": frozenset({"mlp-out"}),
    "all-linear": _ATTENTION | _MLP | {"linear"},
    "norms": frozenset({"norm"}),
    "convs": frozenset({"conv"}),
    "stem": frozenset({"stem"}),
}


def is_set(targets: object) -> bool:
    """Whether ``targets`` is a named set, or several joined with ``+`` (otherwise it is names or a regex).

    InputError if some of the joined names are sets and another is not.
    """
    if not isinstance(targets, str):
        return False
    names = targets.split("+")
    unknown = [name for name in names if name not in SETS]
    if unknown and len(unknown) < len(names) and all(name.replace("-", "").isalpha() for name in unknown):
        near = difflib.get_close_matches(unknown[0], SETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SETS)}"
        raise InputError(f"{unknown[0]!r} in target_modules={targets!r} is no named set; {hint}")
    return not unknown
