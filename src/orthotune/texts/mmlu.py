"""MMLU (Hendrycks et al., ICLR 2021, arXiv 2009.03300): questions with four choices on 57 subjects, as CSV files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from orthotune.errors import InputError

_LETTERS = "ABCD"


def read_mmlu(folder: str | Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """``{subject: {"dev": rows, "test": rows}}`` of ``dev/SUBJECT_dev.csv`` and ``test/SUBJECT_test.csv``.

    A row is question, four choices and answer (a letter, or the choice's number from 0), under a header that begins
    with ``question`` or without one; it becomes ``question``, ``choices`` and ``answer`` (the number).
    InputError for what is missing or malformed, with file and line.
    """
    folder = Path(folder)
    if not (folder / "test").is_dir():
        raise InputError(f"--data {str(folder)!r} has no folder test/ with SUBJECT_test.csv files")
    found = {}
    for path in sorted((folder / "test").glob("*_test.csv")):
        subject = path.name.removesuffix("_test.csv")
        examples = folder / "dev" / f"{subject}_dev.csv"
        if not examples.is_file():
            raise InputError(f"{str(examples)!r} is missing: the examples of a subject are shown before its questions")
        found[subject] = {"dev": _rows(examples), "test": _rows(path)}
    if not found:
        raise InputError(f"{str(folder / 'test')!r} holds no SUBJECT_test.csv files")
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        for cells in lines:
            if not cells or (not rows and cells[0].strip().lower() == "question"):
                continue
            where = f"{str(path)!r}, line {lines.line_num}"
            if len(cells) != 6:
                raise InputError(f"{where}: {len(cells)} cells; there must be 6: question, four choices, answer")
            answer = cells[5].strip()
            if len(answer) != 1 or answer not in _LETTERS + "0123":
                raise InputError(f"{where}: answer {answer!r} is neither a letter A to D nor a number 0 to 3")
            number = _LETTERS.index(answer) if answer in _LETTERS else int(answer)
            rows.append({"question": cells[0], "choices": cells[1:5], "answer": number})
    if not rows:
        raise InputError(f"{str(path)!r} holds no questions")
    return rows
