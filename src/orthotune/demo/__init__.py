"""The demonstration: every method on real images, in about a minute, without network or preparation."""

from orthotune.demo.digits import write_digits
from orthotune.demo.run import Row, run_demo

__all__ = ["Row", "run_demo", "write_digits"]
