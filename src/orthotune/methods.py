"""The table of fine-tuning methods: one entry per method, read by the command line, the loop and the tests."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from orthotune.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig

TARGETS_HELP = (
    "target_modules also takes a named set, or several joined with +: default (q, k, v, output projection and MLP "
    "of every block), qv, attention, mlp, all-linear (all but the head), norms. The head is always trained."
)

#: PEFT's own bookkeeping fields, which a run sets itself.
RESERVED_FIELDS = frozenset(
    {
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "megatron_config",
        "megatron_core",
        "runtime_config",
        "format_version",
    }
)


@dataclasses.dataclass(frozen=True)
class Method:
    """How one fine-tuning method is set up.

    ``config`` is ``"module:Class"`` of a PEFT config (None: no adapter), ``trains`` what is trained besides the
    head, ``targets`` the named set of modules adapted by default, ``defaults`` the values that differ from the
    config's own, ``lr`` the learning rate to start from (of goft, qgoft, rlrr, aoft and lora: near the best in
    docs/results.md).
    """

    summary: str
    lr: float
    config: str | None = None
    trains: Literal["adapter", "head", "all"] = "adapter"
    targets: str = "default"
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config_class(self) -> type[PeftConfig]:
        """The PEFT config class; InputError for the methods that have none."""
        if self.config is None:
            raise InputError("this method has no adapter, so it takes no adapter fields: leave --adapter.* out")
        module, _, name = self.config.partition(":")
        return getattr(importlib.import_module(module), name)


METHODS: dict[str, Method] = {
    "goft": Method("Givens rotations: D-1 angles a layer, exactly orthogonal", 1e-2, "orthotune:GOFTConfig"),
    "qgoft": Method(
        "Givens rotations with free 2x2 blocks: 4(D-1) numbers a layer, softly orthogonal",
        1e-2,
        "orthotune:GOFTConfig",
        defaults={"quasi": True},
    ),
    "rlrr": Method(
        "Residual low-rank rescaling of every weight, and of the norms",
        3e-3,
        "orthotune:RLRRConfig",
        targets="default+norms",
    ),
    "aoft": Method("Low-rank update between approximately orthogonal projections", 1e-2, "orthotune:AOFTConfig"),
    "lora": Method("Low-rank update (PEFT)", 3e-3, "peft:LoraConfig", defaults={"r": 8, "lora_alpha": 8}),
    "oft": Method("Block-diagonal orthogonal fine-tuning (PEFT)", 1e-3, "peft:OFTConfig"),
    "linear": Method("Linear probe: the head alone", 3e-3, trains="head"),
    "full": Method("Every parameter", 1e-4, trains="all"),
}


def near(name: str, known: Iterable[str]) -> str:
    """A phrase that helps after an unknown name: the nearest known ones, or all when few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(names[:40])


def get_method(name: str) -> Method:
    """The entry of METHODS, or an InputError with near names."""
    if name not in METHODS:
        raise InputError(f"method {name!r} is unknown; {near(name, METHODS)}")
    return METHODS[name]


def adapter_fields(name: str) -> dict[str, tuple[Any, Any, str]]:
    """``{field: (type, default, help)}`` of a method's PEFT config, without PEFT's bookkeeping fields."""
    method = get_method(name)
    if method.config is None:
        return {}
    cls = method.config_class()
    hints = typing.get_type_hints(cls)
    fields: dict[str, tuple[Any, Any, str]] = {}
    for f in dataclasses.fields(cls):
        if f.name in RESERVED_FIELDS or not f.init:
            continue
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        default = method.defaults.get(f.name, default)
        fields[f.name] = (hints[f.name], default, str(f.metadata.get("help", "")))
    return fields


def type_text(hint: Any) -> str:
    """A type as a user would write it: ``Union[bool, Literal['paper']]`` is ``true, false or 'paper'``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return "true or false"
    if hint is type(None):
        return "null"
    if origin is Literal:
        return ", ".join(repr(a) for a in args)
    if origin in (list, tuple, set) and args:
        return f"a list of {type_text(args[0])}"
    if args and origin is not dict:
        return " or ".join(type_text(a) for a in args)
    names = {int: "an integer", float: "a number", str: "text", Any: "anything"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def parse_value(name: str, hint: Any, value: Any) -> Any:
    """``value`` checked against, and converted to, the type ``hint``; InputError names both."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except ValueError:  # a type that jsonargparse has no parser for: the config class checks it
        return value
    try:
        return parser.parse_object({"value": value})["value"]
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"{name} is {value!r}, which is not {type_text(hint)}") from error


def adapter_values(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The config's keyword arguments of method ``name``: its defaults and ``values``, names and types checked."""
    method = get_method(name)
    if method.config is None:
        if values:
            raise InputError(f"method {name!r} has no adapter, so --adapter.{next(iter(values))} has no meaning")
        return {}
    fields = adapter_fields(name)
    out = dict(method.defaults)
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"adapter field {key!r} is unknown for method {name!r}; {near(key, fields)}")
        out[key] = parse_value(f"--adapter.{key}", fields[key][0], value)
    return out
