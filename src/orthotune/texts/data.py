"""What readers of texts return, the registry of their schemes, and how a validation part is taken off."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from orthotune.errors import InputError
from orthotune.methods import near

#: scheme -> "module:function", which takes the path and the classes to map labels to (None: those of the data)
READERS = {
    "glue": "orthotune.texts.glue:read_glue",
    "text": "orthotune.texts.glue:read_own",
    "squad": "orthotune.texts.squad:read_squad",
    "alpaca": "orthotune.texts.alpaca:read_alpaca",
}


@dataclasses.dataclass(frozen=True)
class TextData:
    """Records by split: ``train`` and, where they exist, ``val``, ``test`` and further tests ``test_NAME``.

    ``classes`` are the names of the labels, empty where there are none. ``metric`` is the main score. ``published``
    are the sizes of the original: of ``train`` (with ``val``) and of the tests. ``group`` gives what a validation part
    is drawn by: the class, of which each gives a share, or the article, which is in one part as a whole.
    """

    splits: dict[str, list[Any]]
    classes: tuple[str, ...] = ()
    metric: str = "accuracy"
    title: str = "texts"
    published: dict[str, int] = dataclasses.field(default_factory=dict)
    whole_groups: bool = False
    group: Callable[[Any], Hashable] = lambda record: None

    def limited(self, train: int | None) -> TextData:
        """With so many of the training records at most, in their order; the same draw in every call."""
        records = self.splits["train"]
        if train is None or train >= len(records):
            return self
        chosen = sorted(np.random.default_rng(0).permutation(len(records))[:train].tolist())
        return dataclasses.replace(self, splits={**self.splits, "train": [records[i] for i in chosen]}, published={})

    def describe(self) -> dict[str, Any]:
        """Counts, per class where there are any, how they differ from the published ones, and a SHA-256 over all."""
        info: dict[str, Any] = {"title": self.title, "classes": list(self.classes), "val": None, "test": None}
        digest = hashlib.sha256()
        for name, records in self.splits.items():
            info[name] = {"examples": len(records)}
            if self.classes:
                counts = Counter(record.label for record in records)
                info[name]["per_class"] = [counts[i] for i in range(len(self.classes))]
            for record in records:
                digest.update(f"{name} {json.dumps(dataclasses.astuple(record))}\n".encode())
        info["deviations"] = self.deviations()
        info["sha256"] = digest.hexdigest()
        return info

    def deviations(self) -> list[str]:
        """How the numbers of records differ from the published ones, one sentence a part; none if they do not."""
        found = {name: len(records) for name, records in self.splits.items()}
        found["train"] = found.get("train", 0) + found.pop("val", 0)
        return [
            f"{self.title}: {found.get(name, 0):,} records to {'train (and choose) on' if name == 'train' else name}, "
            f"the original has {count:,}"
            for name, count in self.published.items()
            if found.get(name) != count
        ]


def read(
    spec: str, validation: str = "auto", val_fraction: float = 0.2, seed: int = 0, *, classes: Sequence[str] = ()
) -> TextData:
    """Read ``SCHEME:PATH``; ``validation`` as in :func:`orthotune.data.scan`.

    InputError for what is missing or malformed, with the file and the line or the record.
    """
    return _with_validation(source(spec, classes), spec, validation, val_fraction, seed)


def source(spec: str, classes: Sequence[str] = ()) -> TextData:
    """The splits of ``SCHEME:PATH`` as they are there."""
    scheme, _, where = spec.partition(":")
    if scheme not in READERS:
        raise InputError(f"--data {spec!r}: scheme {scheme!r} is unknown; {near(scheme, READERS)}")
    if not Path(where).exists():
        raise InputError(f"--data {spec!r}: {where!r} does not exist")
    module, _, function = READERS[scheme].partition(":")
    found: TextData = getattr(import_module(module), function)(Path(where), tuple(classes))
    return found


def _with_validation(data: TextData, spec: str, validation: str, fraction: float, seed: int) -> TextData:
    splits = dict(data.splits)
    if "train" not in splits:
        return data
    val = splits.pop("val", None)
    if validation == "join":
        if val is None:
            raise InputError(f"--validation join: {spec!r} has no validation part of its own")
        splits["train"] = splits["train"] + val
    elif validation == "auto":
        if val is None:
            splits["train"], val = take(splits["train"], data.group, fraction, seed, whole=data.whole_groups)
        splits["val"] = val
    return dataclasses.replace(data, splits=splits)


def take(
    records: list[Any], group: Callable[[Any], Hashable], fraction: float, seed: int, *, whole: bool
) -> tuple[list[Any], list[Any]]:
    """(rest, share): a share ``fraction`` of each group, or (``whole``) of the groups; drawn by ``seed``.

    InputError if that leaves nothing on one side.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(group(record), []).append(index)
    rng = np.random.default_rng(seed)
    if whole:
        names = list(groups)
        count = min(max(1, round(fraction * len(names))), len(names) - 1)
        chosen = [i for k in rng.permutation(len(names))[:count] for i in groups[names[k]]]
    else:
        chosen = []
        for indices in groups.values():
            count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
            chosen += rng.permutation(indices)[:count].tolist()
    if not chosen:
        raise InputError(f"{len(records)} records leave none to validate on: use --validation none, or more data")
    taken = set(chosen)
    return [r for i, r in enumerate(records) if i not in taken], [r for i, r in enumerate(records) if i in taken]
