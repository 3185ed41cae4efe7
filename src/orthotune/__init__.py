"""Fine-tune a large pre-trained model with a few thousand numbers: GOFT, RLRR, AOFT and their family as PEFT tuners.

Importing this package registers the methods with PEFT; from then on ``peft.get_peft_model``,
``PeftModel.from_pretrained`` and everything else of PEFT work on them as on LoRA. The configuration of every method in
:data:`orthotune.methods.METHODS` that has a tuner here is an attribute of this package: ``orthotune.GOFTConfig``, ...
"""

from typing import Any

from orthotune.diagnostics import orthogonality_defect, regularization_loss
from orthotune.errors import InputError
from orthotune.exporting import export_to_lora
from orthotune.methods import METHODS
from orthotune.targets.resolve import target_modules
from orthotune.tuners import split_fused_projections
from orthotune.tuners.aoft import AOFTConfig, AOFTModel
from orthotune.tuners.goft import GOFTConfig, GOFTModel
from orthotune.tuners.rlrr import RLRRConfig, RLRRModel

__version__ = "0.1.0"

__all__ = [
    "AOFTConfig",
    "AOFTModel",
    "GOFTConfig",
    "GOFTModel",
    "InputError",
    "RLRRConfig",
    "RLRRModel",
    "__version__",
    "export_to_lora",
    "orthogonality_defect",
    "regularization_loss",
    "split_fused_projections",
    "target_modules",
]


def __getattr__(name: str) -> Any:
    for method in METHODS.values():
        if method.is_own and method.config.endswith(f":{name}"):
            return method.config_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(m.config.partition(":")[2] for m in METHODS.values() if m.is_own)})
