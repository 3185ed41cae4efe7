"""Instructions in the Alpaca format (Taori et al., 2023): ``instruction``, ``input`` (may be empty) and ``output``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import InputError
from orthotune.texts.data import TextData

#: The format's prompts, with and without an input; the response follows at once.
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


@dataclass(frozen=True)
class Instruction:
    """An instruction, its input (or ""), and the response to it."""

    instruction: str
    input: str
    output: str

    def texts(self) -> tuple[str, ...]:
        """What a model is given in training: the prompt with its response."""
        return (self.prompt() + self.output,)

    def prompt(self) -> str:
        """The text before the response."""
        return (PROMPT_WITH_INPUT if self.input else PROMPT).format(instruction=self.instruction, input=self.input)


def read_alpaca(path: Path, classes: Sequence[str] = ()) -> TextData:
    """A JSON or JSON-lines file, all of it to train (and choose) on; or a folder with train, and maybe val and test."""
    if not path.is_dir():
        return TextData({"train": _records(path)}, title="instructions")
    splits: dict[str, list[Any]] = {}
    for split in ("train", "val", "test"):
        for suffix in (".json", ".jsonl"):
            if (path / f"{split}{suffix}").is_file():
                splits[split] = _records(path / f"{split}{suffix}")
    if not splits:
        raise InputError(f"--data alpaca:{path}: the folder holds none of train, val, test (.json or .jsonl)")
    return TextData(splits, title="instructions")


def _records(path: Path) -> list[Instruction]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            found: Any = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            found = json.loads(text)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(found, list) or not found:
        raise InputError(f"{str(path)!r} is no list of records with instruction, input and output")
    return [_record(f"{str(path)!r}, record {number}", record) for number, record in enumerate(found, start=1)]


def _record(where: str, record: Any) -> Instruction:
    if not isinstance(record, dict):
        raise InputError(f"{where}: not an object with instruction, input and output")
    cells: dict[str, Any] = {name: record.get(name) for name in ("instruction", "input", "output")}
    cells["input"] = cells["input"] or ""
    for name, value in cells.items():
        if not isinstance(value, str):
            there = ", ".join(map(str, record))
            raise InputError(f"{where}: {name!r} is missing or no text; there are: {there}")
        if name != "input" and not value.strip():
            raise InputError(f"{where}: the {'response' if name == 'output' else name} ({name!r}) is empty")
    return Instruction(*(value.strip() for value in cells.values()))
