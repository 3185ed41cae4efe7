"""The one place that touches PEFT's own tables: the enum of its methods and the maps keyed by it."""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method


def peft_type(name: str) -> PeftType:
    """Return the member ``name`` of PEFT's enum of methods, adding it where it is missing."""
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)
    return PeftType[name]


def register(name: str, config_cls: type[Any], model_cls: type[Any]) -> None:
    """Make the method ``name`` (lower case) known to PEFT. Calling it again, or reloading this package, is harmless.

    Raises RuntimeError if PEFT, or another package, already has a method of that name.
    """
    member = peft_type(name.upper())
    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if present is not None:
        if present.__module__ != config_cls.__module__:
            raise RuntimeError(
                f"PEFT already has a method {name!r}, from {present.__module__}; orthotune cannot register its own"
            )
        for table in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
            table.pop(member, None)
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)


def tuner_of(config_cls: type[Any]) -> type[Any]:
    """Return the tuner class that PEFT uses for a configuration class."""
    return PEFT_TYPE_TO_TUNER_MAPPING[config_cls().peft_type]
