"""GLUE's tasks (Wang et al., ICLR 2019, arXiv 1804.07461), and classification of texts in tables of one's own.

The labels of GLUE's test sets are not public, so the test set of a run is GLUE's dev set. It lies in ``dev`` (or
``validation``); where ``test`` has labels, it is that one, and ``dev`` is for validation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orthotune.errors import InputError
from orthotune.methods import near
from orthotune.progress import say
from orthotune.texts.data import TextData
from orthotune.texts.tables import find_table, read_table


@dataclass(frozen=True)
class Sentences:
    """One sentence, or two, with the index of its class, or a number."""

    first: str
    second: str | None
    label: int | float

    def texts(self) -> tuple[str, ...]:
        """What a model is given: one text or two."""
        return (self.first,) if self.second is None else (self.first, self.second)


@dataclass(frozen=True)
class Spec:
    """How a task's tables are read.

    ``columns`` are those of its one or two sentences, each under the names it has in the wild; ``header`` those of
    files without one. ``classes`` are in the order of the numbers that stand for them; a task without is a regression.
    ``sizes`` are the published ones of train and dev. ``corrupt`` lines may be left out: the original has some.
    """

    title: str
    columns: tuple[tuple[str, ...], ...]
    label: tuple[str, ...]
    classes: tuple[str, ...]
    metric: str
    sizes: tuple[int, int] | None = None
    header: tuple[str, ...] = ()
    corrupt: int = 0
    train: tuple[str, ...] = ("train",)
    dev: tuple[str, ...] = ("dev", "validation")
    test: tuple[str, ...] = ("test",)
    further: dict[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)


_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = (("sentence1",), ("sentence2",))

#: task -> spec; sizes from the data cards of the original
GLUE: dict[str, Spec] = {
    "cola": Spec(
        "CoLA",
        (("sentence",),),
        ("label",),
        ("unacceptable", "acceptable"),
        "mcc",
        (8551, 1043),
        header=("source", "label", "star", "sentence"),
    ),
    "sst2": Spec("SST-2", (("sentence",),), ("label",), ("negative", "positive"), "accuracy", (67349, 872)),
    "mrpc": Spec(
        "MRPC",
        (("sentence1", "#1 String"), ("sentence2", "#2 String")),
        ("label", "Quality"),
        ("not_equivalent", "equivalent"),
        "accuracy",
        (3668, 408),
        train=("train", "msr_paraphrase_train"),
    ),
    "stsb": Spec("STS-B", _PAIR, ("label", "score"), (), "correlation", (5749, 1500)),
    "qqp": Spec(
        "QQP",
        (("question1",), ("question2",)),
        ("label", "is_duplicate"),
        ("not_duplicate", "duplicate"),
        "accuracy",
        (363846, 40430),
        corrupt=50,
    ),
    "mnli": Spec(
        "MNLI",
        (("premise", "sentence1"), ("hypothesis", "sentence2")),
        ("label", "gold_label"),
        ("entailment", "neutral", "contradiction"),
        "accuracy",
        (392702, 9815),
        dev=("dev_matched", "validation_matched"),
        test=("test_matched",),
        further={"mm": (("dev_mismatched", "validation_mismatched"), 9832)},
    ),
    "qnli": Spec("QNLI", (("question",), ("sentence",)), ("label",), _ENTAILMENT, "accuracy", (104743, 5463)),
    "rte": Spec("RTE", _PAIR, ("label",), _ENTAILMENT, "accuracy", (2490, 277)),
}


def read_glue(folder: Path, classes: Sequence[str] = ()) -> TextData:
    """A task of GLUE, which is told by the folder's name (``cola``, ``SST-2``, ...)."""
    name = folder.resolve().name.lower().replace("-", "").replace("_", "")
    if name not in GLUE:
        raise InputError(f"--data glue:{folder}: {folder.name!r} is no task of GLUE; {near(name, GLUE)}")
    return _read(folder, GLUE[name])


def read_own(folder: Path, classes: Sequence[str] = ()) -> TextData:
    """Tables with a header: ``text`` or ``sentence``, or two sentences, and ``label``; the labels name the classes."""
    path = find_table(folder, ("train",)) if not classes else find_table(folder, ("test", "dev", "validation", "val"))
    if path is None:
        raise InputError(f"--data text:{folder}: no train table (train.tsv, .csv, .jsonl or .parquet)")
    _, first = next(read_table(path), ("", {}))
    pairs = (("sentence1", "text1", "premise", "question1"), ("sentence2", "text2", "hypothesis", "question2"))
    single = (("text", "sentence"),)
    columns = pairs if all(any(name in first for name in names) for names in pairs) else single
    if not classes:
        classes = sorted({str(row.get("label", "")) for _, row in read_table(path)} - {""})
        if len(classes) < 2:
            raise InputError(
                f"{str(path)!r}: column 'label' has {len(classes)} different values; at least 2 are needed"
            )
    return _read(folder, Spec(folder.resolve().name, columns, ("label",), tuple(classes), "accuracy"))


def _read(folder: Path, spec: Spec) -> TextData:
    if not folder.is_dir():
        raise InputError(f"--data: {str(folder)!r} is not a folder with train, dev and test tables")
    paths = {name: find_table(folder, getattr(spec, name)) for name in ("train", "dev", "test")}
    val = find_table(folder, ("val",))
    test = paths["test"] if paths["test"] is not None and _is_labelled(paths["test"], spec) else None
    if test is None:
        test, paths["dev"] = paths["dev"], None
    if paths["train"] is None and test is None:
        known = ", ".join(f"{name}.tsv" for name in (*spec.train, *spec.dev))
        raise InputError(f"--data: {str(folder)!r} holds none of {known} (or .csv, .jsonl, .parquet)")
    splits: dict[str, Path | None] = {"train": paths["train"], "val": val or paths["dev"], "test": test}
    published = dict(zip(("train", "test"), spec.sizes, strict=True)) if spec.sizes else {}
    for name, (names, size) in spec.further.items():
        splits[f"test_{name}"] = find_table(folder, names)
        published[f"test_{name}"] = size
    records = {name: _records(path, spec) for name, path in splits.items() if path is not None}
    by_class = bool(spec.classes)
    return TextData(
        records,
        spec.classes,
        spec.metric,
        spec.title,
        published,
        group=lambda record: record.label if by_class else None,
    )


def _is_labelled(path: Path, spec: Spec) -> bool:
    """Whether the first row has a label (the original's test sets have none, or -1)."""
    _, row = next(read_table(path, _header(path, spec)), ("", {}))
    return next((str(row[name]) for name in spec.label if row.get(name) is not None), "") not in ("", "-1", "-1.0")


def _header(path: Path, spec: Spec) -> tuple[str, ...]:
    if not spec.header or path.suffix != ".tsv":
        return ()
    with path.open(encoding="utf-8-sig") as file:
        cells = file.readline().rstrip("\r\n").split("\t")
    return () if "sentence" in cells else spec.header


def _records(path: Path, spec: Spec) -> list[Sentences]:
    found: list[Sentences] = []
    corrupt: list[InputError] = []
    for where, row in read_table(path, _header(path, spec)):
        try:
            texts = [_text(where, row, names) for names in spec.columns]
            found.append(Sentences(texts[0], texts[1] if len(texts) > 1 else None, _label(where, row, spec)))
        except InputError as error:
            corrupt.append(error)
            if len(corrupt) > spec.corrupt or not found:
                raise
    if corrupt:
        say(f"{str(path)!r}: {len(corrupt)} corrupt lines left out, the first: {corrupt[0]}")
    if not found:
        raise InputError(f"{str(path)!r} holds no examples")
    return found


def _cell(where: str, row: dict[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise InputError(f"{where}: column {' or '.join(map(repr, names))} is missing; there are: {', '.join(row)}")


def _text(where: str, row: dict[str, Any], names: Sequence[str]) -> str:
    text = str(_cell(where, row, names)).strip()
    if not text:
        raise InputError(f"{where}: column {names[0]!r} is empty")
    return text


def _label(where: str, row: dict[str, Any], spec: Spec) -> int | float:
    value = str(_cell(where, row, spec.label)).strip()
    if spec.classes:
        if value in spec.classes:
            return spec.classes.index(value)
        # a number stands for a class where no class is called so
        if value.isdecimal() and int(value) < len(spec.classes) and not any(c.isdecimal() for c in spec.classes):
            return int(value)
        known = ", ".join(spec.classes)
        raise InputError(f"{where}: label {value!r} is none of: {known} (or 0 to {len(spec.classes) - 1})")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 5:
        raise InputError(f"{where}: score {value!r} is no number from 0 to 5")
    return number
