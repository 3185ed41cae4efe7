"""Fine-tune a large pre-trained model with a few thousand numbers: GOFT, RLRR and AOFT as native PEFT tuners.

Importing this package registers the three methods with PEFT; from then on ``peft.get_peft_model``,
``PeftModel.from_pretrained`` and everything else of PEFT work on them as on LoRA.
"""

from orthotune.diagnostics import orthogonality_defect, regularization_loss
from orthotune.errors import InputError
from orthotune.tuners import (
    AOFTConfig,
    AOFTModel,
    GOFTConfig,
    GOFTModel,
    RLRRConfig,
    RLRRModel,
    split_fused_projections,
)

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
    "orthogonality_defect",
    "regularization_loss",
    "split_fused_projections",
]
