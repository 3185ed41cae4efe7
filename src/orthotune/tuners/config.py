"""What the configurations of all methods share: PEFT's usual fields and the checks on them."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig

from orthotune.errors import InputError
from orthotune.targets.sets import is_set

FORMAT_VERSION = 1


@dataclass
class AdapterConfig(PeftConfig):
    """Fields common to all methods; their meaning is PEFT's.

    Raises :class:`orthotune.errors.InputError`, a ValueError, for a value out of range.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "The layers to adapt: names (or suffixes), a regular expression, 'all-linear', or a named set such "
            "as 'attention' or 'default+norms'."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names (or suffixes) or a regular expression: layers to leave alone."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Adapt only the layers with these indices."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={"help": "Name of the list of layers, such as 'blocks'; with layers_to_transform."},
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained whole and saved with the adapter, such as the classifier head."},
    )
    bias: str = field(
        default="none", metadata={"help": "Biases to train: 'none', 'all', or those of the adapted layers."}
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "Whether the weights are stored (in, out), as in transformers' Conv1D."},
    )
    format_version: int = field(
        default=FORMAT_VERSION,
        metadata={"help": "Version of the checkpoint's meaning; set when it is saved."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if isinstance(self.target_modules, str):
            named_set = is_set(self.target_modules)
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None and not named_set:
                    raise InputError(
                        f"`{name}` cannot be used when `target_modules` is a str: it is a regular expression "
                        f"({self.target_modules!r}); pass a list of names or a named set instead"
                    )
        if self.layers_pattern and self.layers_to_transform is None:
            raise InputError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")
        if self.format_version > FORMAT_VERSION:
            raise InputError(
                f"this adapter has format_version={self.format_version}, and this orthotune knows up to "
                f"{FORMAT_VERSION}: upgrade orthotune to use it"
            )
        self.check_choice("bias", ("none", "all", f"{self.method}_only"))

    @property
    def starts_as_no_op(self) -> bool:
        """Whether the adapted model starts as the model it was made from."""
        return getattr(self, "init_weights", True) is True

    @property
    def method(self) -> str:
        """Lower-case name of the method, also the prefix of its parameters."""
        return str(self.peft_type.value).lower()

    def check_choice(self, name: str, allowed: Collection[Any]) -> None:
        """Raise InputError unless the field ``name`` is one of ``allowed``; bool and int are told apart."""
        value = getattr(self, name)
        if any(value is a or (type(value) is type(a) and value == a) for a in allowed):
            return
        near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}{hint}")

    def check_positive(self, name: str) -> None:
        """Raise InputError unless the field ``name`` is a whole number of at least 1."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is out of range: it is a whole number of at least 1")

    def check_fraction(self, name: str) -> None:
        """Raise InputError unless the field ``name`` is a number from 0 up to but not including 1."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(f"{name}={value!r} is out of range: it is a number of at least 0 and less than 1")

    def check_rank(self, module_name: str, in_features: int, out_features: int) -> None:
        """Raise InputError unless the field ``r`` is a rank that a layer of this size has."""
        rank, limit = int(getattr(self, "r", 1)), min(in_features, out_features)
        if rank > limit:
            raise InputError(
                f"r={rank} is out of range for layer {module_name!r}: 1 <= r <= min(in, out) = "
                f"min({in_features}, {out_features}) = {limit}; lower r or name the layer in exclude_modules"
            )
