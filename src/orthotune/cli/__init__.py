"""The command line: ``orthotune fit | evaluate | predict | merge | methods | demo``."""

from orthotune.cli.main import main

__all__ = ["main"]
