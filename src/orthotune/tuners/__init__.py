"""GOFT, RLRR and AOFT as PEFT tuners. Importing this package registers them with PEFT."""

from orthotune.tuners._registration import register
from orthotune.tuners.aoft import AOFTConfig, AOFTModel
from orthotune.tuners.fused import split_fused_projections
from orthotune.tuners.goft import GOFTConfig, GOFTModel
from orthotune.tuners.rlrr import RLRRConfig, RLRRModel

__all__ = [
    "AOFTConfig",
    "AOFTModel",
    "GOFTConfig",
    "GOFTModel",
    "RLRRConfig",
    "RLRRModel",
    "split_fused_projections",
]

register("goft", GOFTConfig, GOFTModel)
register("rlrr", RLRRConfig, RLRRModel)
register("aoft", AOFTConfig, AOFTModel)
