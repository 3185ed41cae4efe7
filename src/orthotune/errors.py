"""The one exception that means "the input is wrong", as opposed to a fault of the program."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: names the thing, the value found, the rule, and what to do.

    The command line prints its text as one line, without a traceback, and exits with status 2.
    """
