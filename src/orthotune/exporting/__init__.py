"""Ways out to other tools, and in from the authors' code."""

from orthotune.exporting.lora import LoraError, export_to_lora, total_error

__all__ = ["LoraError", "export_to_lora", "total_error"]
