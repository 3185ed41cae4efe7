"""The check of a data set of texts: what cannot be read, its counts, and what two splits share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from orthotune.data.quick import Problem
from orthotune.errors import InputError
from orthotune.texts.data import TextData, source

_ANSWERS = frozenset({"label", "id", "output", "answers", "starts"})


def check_texts(data: str, expect: Mapping[str, Any]) -> tuple[dict[str, int], list[Problem]]:
    """(the number of classes and of the records of each split, the problems) of ``SCHEME:PATH``.

    ``expect`` is what a protocol says; ``train`` counts the validation part, too. Reading stops at the first record
    that is wrong, which is then the only problem.
    """
    try:
        found = source(data)
    except InputError as error:
        return {}, [Problem("error", str(error))]
    counts = {"classes": len(found.classes), **{name: len(records) for name, records in found.splits.items()}}
    whole = {**counts, "train": counts.get("train", 0) + counts.get("val", 0)}
    problems = [
        Problem("warning", f"{key}: {whole.get(key, 0):,} instead of the {count:,} of the published data set")
        for key, count in expect.items()
        if key in ("classes", "train", "test") and whole.get(key, 0) != count
    ]
    return counts, [*problems, *_shared(found)]


def _shared(data: TextData) -> list[Problem]:
    texts = {name: {_text(record) for record in records} for name, records in data.splits.items()}
    problems = []
    for first, second in combinations(texts, 2):
        common = texts[first] & texts[second]
        if common:
            example = max(min(common), key=len)
            problems.append(
                Problem("warning", f"{first} and {second} share {len(common):,} texts, such as {str(example)[:80]!r}")
            )
    return problems


def _text(record: Any) -> tuple[str, ...]:
    """What a model sees of a record."""
    values = dataclasses.asdict(record).items()
    return tuple(str(value) for name, value in values if name not in _ANSWERS and value is not None)
