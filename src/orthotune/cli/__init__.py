"""The command line: ``orthotune fit | evaluate | predict | merge | export | import | push | methods | demo``."""

from orthotune.cli.main import main

__all__ = ["main"]
