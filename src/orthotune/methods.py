"""The registry: one line per fine-tuning method, read by PEFT's tables, the command line, the loop, tests and docs."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from orthotune.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig

    from orthotune.models.selection import Selection


@dataclasses.dataclass(frozen=True)
class Method:
    """How one fine-tuning method is set up.

    ``config`` is ``"module:Class"``: a PEFT config, or a :class:`~orthotune.models.selection.Selection` of the model's
    own parameters. ``targets`` is the named set of modules adapted by default (None: the tuner finds them),
    ``defaults`` are the values that differ from the config's own, ``lr`` is the learning rate to start from.
    """

    summary: str
    lr: float
    config: str
    targets: str | None = "default"
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config_class(self) -> type[PeftConfig | Selection]:
        """The class of its settings."""
        module, _, name = self.config.partition(":")
        return getattr(importlib.import_module(module), name)

    @property
    def is_adapter(self) -> bool:
        """Whether it puts PEFT adapters on the model, rather than training parameters of the model itself."""
        return not self.config.startswith("orthotune.models.")

    @property
    def is_own(self) -> bool:
        """Whether its tuner is one of this package."""
        return self.config.startswith("orthotune.tuners.")


#: Every layer with a weight per output: linear layers, normalisations and the patch embedding.
ALL_LAYERS = "all-linear+norms+stem"

METHODS: dict[str, Method] = {
    "goft": Method(
        "Givens rotations: D-1 angles a layer, exactly orthogonal", 1e-2, "orthotune.tuners.goft:GOFTConfig"
    ),
    "qgoft": Method(
        "Givens rotations with free 2x2 blocks: 4(D-1) numbers a layer, softly orthogonal",
        1e-2,
        "orthotune.tuners.goft:GOFTConfig",
        defaults={"quasi": True},
    ),
    "rlrr": Method(
        "Residual low-rank rescaling of every weight, and of the norms",
        3e-3,
        "orthotune.tuners.rlrr:RLRRConfig",
        targets="default+norms",
    ),
    "aoft": Method(
        "Low-rank update between approximately orthogonal projections", 1e-2, "orthotune.tuners.aoft:AOFTConfig"
    ),
    "ssf": Method("Scale and shift of the output of every layer", 3e-3, "orthotune.tuners.ssf:SSFConfig", ALL_LAYERS),
    "bitfit": Method("The biases alone", 1e-2, "orthotune.tuners.bitfit:BitFitConfig", ALL_LAYERS),
    "arc": Method(
        "Symmetric low-rank map before attention and FFN, its projection shared by all layers",
        3e-3,
        "orthotune.tuners.arc:ARCConfig",
        "qkv+mlp-in",
    ),
    "fact-tt": Method("Low-rank updates as one tensor train over all layers", 3e-3, "orthotune.tuners.fact:FacTConfig"),
    "fact-tk": Method(
        "Low-rank updates as one Tucker tensor over all layers",
        3e-3,
        "orthotune.tuners.fact:FacTConfig",
        defaults={"decomposition": "tk", "r": 32},
    ),
    "h-adapter": Method(
        "Bottleneck after attention and FFN (Houlsby)",
        3e-3,
        "orthotune.tuners.bottleneck:BottleneckConfig",
        "out+mlp-out",
    ),
    "h-adapter-aoft": Method(
        "Bottleneck after attention and FFN, with AOFT's projections",
        1e-2,
        "orthotune.tuners.bottleneck:BottleneckConfig",
        "out+mlp-out",
        {"projection": "approx_orthogonal", "activation": "none"},
    ),
    "p-adapter": Method(
        "Bottleneck after the FFN (Pfeiffer)",
        3e-3,
        "orthotune.tuners.bottleneck:BottleneckConfig",
        "mlp-out",
        {"r": 16},
    ),
    "adaptformer": Method("Bottleneck beside the FFN", 3e-3, "orthotune.tuners.adaptformer:AdaptFormerConfig", None),
    "vpt-deep": Method("Prompt tokens in every block", 1e-3, "orthotune.tuners.vpt:VPTConfig", None),
    "vpt-deep-aoft": Method(
        "Prompt tokens in every block, generated from one vector each by AOFT's projection",
        1e-2,
        "orthotune.tuners.vpt:VPTConfig",
        None,
        {"projection": "approx_orthogonal", "num_tokens": 10},
    ),
    "vpt-shallow": Method(
        "Prompt tokens in the first block's input",
        1e-2,
        "orthotune.tuners.vpt:VPTConfig",
        None,
        {"deep": False, "num_tokens": 100},
    ),
    "lora": Method("Low-rank update (PEFT)", 3e-3, "peft:LoraConfig", defaults={"r": 8, "lora_alpha": 8}),
    "adalora": Method(
        "Low-rank update, its rank shared out in training (PEFT)",
        1e-2,
        "peft:AdaLoraConfig",
        defaults={"init_r": 12, "target_r": 8, "lora_alpha": 12, "total_step": 1},
    ),
    "oft": Method("Block-diagonal orthogonal fine-tuning (PEFT)", 1e-3, "peft:OFTConfig"),
    "boft": Method("Butterfly orthogonal fine-tuning (PEFT)", 1e-3, "peft:BOFTConfig"),
    "hra": Method("Householder reflections (PEFT)", 3e-3, "peft:HRAConfig"),
    "vera": Method(
        "Low-rank update with random projections shared by all layers (PEFT)",
        1e-2,
        "peft:VeraConfig",
    ),
    "ia3": Method(
        "Scales of keys, values and the FFN's inner activations (PEFT)",
        1e-2,
        "peft:IA3Config",
        "kv+mlp-out",
        {"feedforward_modules": "mlp-out"},
    ),
    "ln-tuning": Method("The normalisations (PEFT)", 3e-3, "peft:LNTuningConfig", "norms"),
    "linear": Method("Linear probe: the head alone", 3e-3, "orthotune.models.selection:LinearProbe"),
    "mlp-head": Method("A head with hidden layers (MLP-k)", 1e-3, "orthotune.models.selection:MLPHead"),
    "partial": Method("The last blocks (Partial-k)", 1e-4, "orthotune.models.selection:PartialFineTuning"),
    "full": Method("Every parameter", 1e-4, "orthotune.models.selection:FullFineTuning"),
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
