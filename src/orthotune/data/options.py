"""Options at the end of a data set's name: ``NAME?image=photo&label=species``."""

from __future__ import annotations

from urllib.parse import parse_qsl

from orthotune.errors import InputError
from orthotune.methods import near


def split_options(where: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """(what stands before the ``?``, the options); InputError for one that is not ``known``."""
    name, _, query = where.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in known:
            raise InputError(f"option {key!r} of data {where!r} is unknown; {near(key, known)}")
    return name, options
