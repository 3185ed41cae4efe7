"""Tasks of GLUE: what their files hold, which sentences are drawn, and batches of them.

Files are GLUE's, under ``cola/`` and ``sst2/``. A task's test set is GLUE's own dev set, whose labels are public; for
SST-2 it lies in ``test.tsv``, next to a ``dev.tsv`` that was held out of train and is not used.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.metrics import accuracy_score, matthews_corrcoef
from torch import Tensor
from transformers import DataCollatorWithPadding

from orthotune.errors import InputError

# scikit-learn's, as GLUE has it: of equal predictions it is 0, where torchmetrics 1.9 gives 0.026 on CoLA
METRICS = {"Matthews correlation": matthews_corrcoef, "accuracy": accuracy_score}
Example = tuple[str, int]


@dataclass(frozen=True)
class Task:
    """A task of single sentences and two classes; ``text`` and ``label`` are columns of its files."""

    title: str
    train: str
    test: str
    text: int
    label: int
    header: bool
    metric: str

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return the metric of logits (N, 2) for labels (N,)."""
        return float(METRICS[self.metric](labels.numpy(), logits.argmax(-1).numpy()))


TASKS = {
    "cola": Task("CoLA", "cola/train.tsv", "cola/dev.tsv", 3, 1, False, "Matthews correlation"),
    "sst2": Task("SST-2", "sst2/train.tsv", "sst2/test.tsv", 0, 1, True, "accuracy"),
}


@dataclass(frozen=True)
class Data:
    """The sentences of a task: drawn ones to train and to choose on, all to test on."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    def describe(self) -> dict[str, Any]:
        """Return for each part the number of sentences, the share of class 1 and a SHA-256 over all of it."""
        return {
            name: {
                "sentences": len(part),
                "share_of_class_1": round(sum(label for _, label in part) / len(part), 4),
                "sha256": hashlib.sha256("".join(f"{label}\t{text}\n" for text, label in part).encode()).hexdigest(),
            }
            for name, part in vars(self).items()
        }


def read(task: Task, folder: Path, train: int, validation: int) -> Data:
    """Return the data, with so many sentences drawn from the train file: the same ones in every call.

    Sentences that occur twice or in the test set are drawn once and never. InputError for files that are missing,
    malformed or too small.
    """
    test = _examples(task, folder / task.test)
    seen = {text for text, _ in test}
    pool = [(text, label) for text, label in dict(_examples(task, folder / task.train)).items() if text not in seen]
    if len(pool) < train + validation:
        raise InputError(
            f"{str(folder / task.train)!r} has {len(pool):,} different sentences, and {train:,} to train and "
            f"{validation:,} to choose on are wanted: lower --train-examples or --validation-examples"
        )
    drawn = random.Random(0).sample(pool, train + validation)
    return Data(drawn[:train], drawn[train:], test)


def _examples(task: Task, path: Path) -> list[Example]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"--data: {str(path)!r} cannot be read: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line or (number == 1 and task.header):
            continue
        cells = line.split("\t")
        if len(cells) <= max(task.text, task.label) or cells[task.label] not in ("0", "1"):
            raise InputError(
                f"{str(path)!r}, line {number}: no sentence in column {task.text + 1} with a label 0 or 1 in column "
                f"{task.label + 1}; the first line is {'names' if task.header else 'an example'}"
            )
        found.append((cells[task.text].strip(), int(cells[task.label])))
    if not found:
        raise InputError(f"--data: {str(path)!r} holds no sentences")
    return found


class Batches:
    """Batches of sentences of similar length, padded to the longest of the batch and cut at ``max_length`` tokens."""

    def __init__(self, examples: list[Example], tokenizer: Any, size: int, max_length: int) -> None:
        encoded = tokenizer([text for text, _ in examples], truncation=True, max_length=max_length)
        self.features = [
            {**{name: column[i] for name, column in encoded.items()}, "labels": label}
            for i, (_, label) in enumerate(examples)
        ]
        self.collate = DataCollatorWithPadding(tokenizer)
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.features) // self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Go through the batches from short to long."""
        return self._cut(sorted(self.features, key=_length))

    def shuffled(self, rng: random.Random) -> Iterator[dict[str, Tensor]]:
        """Go through the batches in random order; which sentences of about a length share one is random, too."""
        order = sorted(self.features, key=lambda feature: (_length(feature), rng.random()))
        starts = list(range(0, len(order), self.size))
        rng.shuffle(starts)
        return self._cut(order, starts)

    def _cut(self, order: list[dict[str, Any]], starts: list[int] | None = None) -> Iterator[dict[str, Tensor]]:
        for start in starts or range(0, len(order), self.size):
            yield dict(self.collate(order[start : start + self.size]))


def _length(feature: dict[str, Any]) -> int:
    return len(feature["input_ids"])
