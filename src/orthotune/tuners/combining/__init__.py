"""Combine adapters into one: what each ``combination_type`` means, and how the new adapter is added."""

from orthotune.tuners.combining.add import add_weighted_adapter
from orthotune.tuners.combining.combination import Combination, Linear, Source

__all__ = ["Combination", "Linear", "Source", "add_weighted_adapter"]
