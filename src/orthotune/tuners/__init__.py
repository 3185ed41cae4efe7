"""The methods as PEFT tuners. Importing this package imports all in the registry, each of which registers with PEFT."""

from importlib import import_module

from orthotune.methods import METHODS
from orthotune.tuners.fused import split_fused_projections

__all__ = ["split_fused_projections"]

for _method in METHODS.values():
    if _method.is_own:
        import_module(_method.config.partition(":")[0])
