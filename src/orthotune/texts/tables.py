"""Tables of texts: TSV, CSV, JSON lines, Parquet, and folders that the ``datasets`` library saved."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orthotune.errors import InputError

#: A row: where it stands (for errors) and its cells by column.
Row = tuple[str, dict[str, Any]]
_SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")


def find_table(folder: Path, names: Sequence[str]) -> Path | None:
    """The table of one of ``names`` in ``folder``: a file, shards ``NAME-*.parquet``, or a folder that was saved."""
    for name in names:
        for suffix in _SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
        if any(folder.glob(f"{name}-*.parquet")):
            return folder / f"{name}-*.parquet"
        if (folder / name / "dataset_info.json").is_file():
            return folder / name
    return None


def read_table(path: Path, names: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a table; ``names`` are the columns of a file without a header. InputError for a malformed line."""
    if path.is_dir() or path.suffix == ".parquet":
        return _datasets_rows(path)
    try:
        if path.suffix == ".jsonl":
            return _json_rows(path)
        return _text_rows(path, names)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _text_rows(path: Path, names: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # the tables of GLUE have no quoting: a quotation mark is a character of a sentence
        form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
        lines = csv.reader(file, **form)
        try:
            header = list(names) or next(lines, [])
            for cells in lines:
                if cells:
                    yield f"{str(path)!r}, line {lines.line_num}", dict(zip(header, cells, strict=False))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{str(path)!r}, after line {lines.line_num}: {error}") from error


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{str(path)!r}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{str(path)!r}, line {number}: not an object with columns")
        yield f"{str(path)!r}, line {number}", row


def _datasets_rows(path: Path) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{str(path)!r} needs the datasets library: pip install 'orthotune[datasets]'") from error
    try:
        if path.is_dir():
            table: Any = datasets.load_from_disk(str(path))
        else:
            files = [str(file) for file in sorted(path.parent.glob(path.name))]
            table = datasets.Dataset.from_parquet(files)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())[:200]}") from error
    names: dict[str, Any] = {name: getattr(feature, "names", None) for name, feature in table.features.items()}
    for number, row in enumerate(table):
        # a label as its class's name
        named = {k: names[k][v] if names[k] and isinstance(v, int) and v >= 0 else v for k, v in row.items()}
        yield f"{str(path)!r}, row {number}", named
