"""The settings a method takes: names, types and defaults from its config class, and checked values for it."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, Literal

from orthotune.errors import InputError
from orthotune.methods import get_method, near

TARGETS_HELP = (
    "target_modules also takes a named set, or several joined with +: default (q, k, v, output projection and MLP "
    "of every block; convolutions where there are none), qv, kv, qkv, attention, out, mlp, mlp-in, mlp-out, "
    "all-linear (all but the head), norms, convs, stem (the patch embedding). The head is always trained."
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


def adapter_fields(name: str) -> dict[str, tuple[Any, Any, str]]:
    """``{field: (type, default, help)}`` of a method's settings, without PEFT's bookkeeping fields."""
    method = get_method(name)
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
    from jsonargparse import ArgumentError

    if _is_plainly(value, hint):
        return value
    parser = _parser(hint)
    if parser is None:
        return value
    try:
        return parser.parse_object({"value": value})["value"]
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"{name} is {value!r}, which is not {type_text(hint)}") from error


def _is_plainly(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type without a doubt; a sweep checks thousands of values, and parsing takes 1 ms."""
    options = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in options
    if isinstance(value, str):
        return hint is str  # where null may stand, too, "null" is a way to write it
    return any(value is None if option is type(None) else type(value) is option for option in options)


@functools.cache
def _parser(hint: Any) -> Any:
    """A parser of one ``value``, None for a type that jsonargparse has none for: the config class checks that."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except ValueError:
        return None
    return parser


def adapter_values(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The config's keyword arguments of method ``name``: its defaults and ``values``, names and types checked."""
    fields = adapter_fields(name)
    out = dict(get_method(name).defaults)
    for key, value in values.items():
        if key not in fields:
            hint = near(key, fields) if fields else "it has none"
            raise InputError(f"adapter field {key!r} is unknown for method {name!r}; {hint}")
        out[key] = parse_value(f"--adapter.{key}", fields[key][0], value)
    return out
