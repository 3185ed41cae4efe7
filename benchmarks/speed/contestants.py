"""The contestants: one entry each, with the PEFT configuration that makes it.

A name of ``RANKED`` also goes with a bottleneck of its own: ``lora-r64``, ``aoft-r512``. The imports are made when a
contestant is built, so that names can be checked at once.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

FLOOR = "floor"


@dataclass(frozen=True)
class Contestant:
    """An adapter: its ``config`` is ``"module:Class"``, ``group`` is who wrote it."""

    label: str
    group: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)


CONTESTANTS = {
    FLOOR: Contestant("frozen, no adapter", "floor", ""),
    "goft": Contestant("GOFT", "orthotune", "orthotune:GOFTConfig"),
    "qgoft": Contestant("qGOFT", "orthotune", "orthotune:GOFTConfig", {"quasi": True}),
    "rlrr": Contestant("RLRR", "orthotune", "orthotune:RLRRConfig"),
    "aoft": Contestant("AOFT r=8", "orthotune", "orthotune:AOFTConfig", {"r": 8}),
    "lora": Contestant("LoRA r=8", "PEFT", "peft:LoraConfig", {"r": 8, "lora_alpha": 8}),
    "dora": Contestant("DoRA r=8", "PEFT", "peft:LoraConfig", {"r": 8, "lora_alpha": 8, "use_dora": True}),
    "oft-b8": Contestant("OFT block 8", "PEFT", "peft:OFTConfig", {"oft_block_size": 8}),
    "oft-b32": Contestant("OFT block 32", "PEFT", "peft:OFTConfig", {"oft_block_size": 32}),
    "boft": Contestant("BOFT block 8", "PEFT", "peft:BOFTConfig", {"boft_block_size": 8, "boft_n_butterfly_factor": 2}),
    "hra": Contestant("HRA r=8", "PEFT", "peft:HRAConfig", {"r": 8}),
    "road": Contestant("RoAd 1", "PEFT", "peft:RoadConfig", {"variant": "road_1"}),
    # its start comes from a singular value decomposition of the weight; the quick one, since the start costs no step
    "psoft": Contestant("PSOFT r=32", "PEFT", "peft:PsoftConfig", {"r": 32, "psoft_svd": "lowrank"}),
}

#: Made of the authors' own public code, which has to be there (``--authors``); see authors.py.
AUTHORS = {
    "goft-authors": Contestant("GOFT, authors' code", "authors", "Givens layer, strict_oft=True, no_scaling=True"),
    "qgoft-authors": Contestant("qGOFT, authors' code", "authors", "Givens layer, strict_oft=False, no_scaling=True"),
    "rlrr-authors": Contestant("RLRR, authors' code", "authors", "RLRRLinear"),
}

RANKED = ("lora", "aoft")


def find(name: str) -> Contestant:
    """Return the entry of a name, with its bottleneck if the name has one; ValueError for an unknown name."""
    known = {**CONTESTANTS, **AUTHORS}
    if name in known:
        return known[name]
    ranked = re.fullmatch(rf"({'|'.join(RANKED)})-r([1-9]\d*)", name)
    if ranked is None:
        raise ValueError(f"contestant {name!r} is unknown; known: {', '.join(known)}, {RANKED[0]}-r64 and the like")
    entry, rank = CONTESTANTS[ranked[1]], int(ranked[2])
    options = {key: rank if key in ("r", "lora_alpha") else value for key, value in entry.options.items()}
    return Contestant(f"{entry.label.split()[0]} r={rank}", entry.group, entry.config, options)


def family(name: str) -> str:
    """Return a name without its bottleneck: ``lora`` for ``lora-r64``."""
    return re.sub(r"-r\d+$", "", name)


def adapt(model: nn.Module, targets: list[str], name: str, authors: str | None) -> tuple[nn.Module, list[str]]:
    """Freeze ``model`` and put the contestant's adapters on its layers ``targets``, in place.

    Returns the model to call and the warnings that were given. Adapters are of the model's dtype. Whatever the
    contestant's library raises goes through.
    """
    model.requires_grad_(False)
    if name == FLOOR:
        return model, []
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        if name in AUTHORS:
            from authors import put_on

            put_on(model, targets, name, authors)
        else:
            from peft import get_peft_model

            entry = find(name)
            module, _, config = entry.config.partition(":")
            config_class = getattr(importlib.import_module(module), config)
            model = get_peft_model(
                model, config_class(target_modules=list(targets), **entry.options), autocast_adapter_dtype=False
            )
    return model.train(), list(dict.fromkeys(_first_line(str(warning.message)) for warning in caught))


def reason(error: Exception) -> str:
    """Return an error's kind and the first line of its text."""
    return f"{type(error).__name__}: {_first_line(str(error))}"


def _first_line(text: str, width: int = 200) -> str:
    line = re.sub(r"/\S*/", "", text.strip().partition("\n")[0])  # folders differ from machine to machine
    return line if len(line) <= width else line[: width - 3] + "..."
