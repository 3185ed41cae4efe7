"""``index.sqlite``: the results as one table, made from the JSON files and as easily made again."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from orthotune.experiments.results import Result
from orthotune.training.files import TEMPORARY

_COLUMNS = {
    "id": "TEXT PRIMARY KEY",
    "phase": "TEXT",
    "task": "TEXT",
    "name": "TEXT",
    "method": "TEXT",
    "settings": "TEXT",
    "seed": "INTEGER",
    "status": "TEXT",
    "error": "TEXT",
    "metric": "TEXT",
    "score": "REAL",
    "loss": "REAL",
    "seconds": "REAL",
    "started": "TEXT",
    "finished": "TEXT",
    "config": "TEXT",
    "path": "TEXT",
}


def write_index(results: Iterable[Result], path: Path) -> None:
    """Write the table ``runs`` to ``path``; mappings are JSON, ``path`` is seen from the file's folder."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    temporary.unlink(missing_ok=True)
    connection = sqlite3.connect(temporary)
    try:
        columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        connection.execute(f"CREATE TABLE runs ({columns})")
        marks = ", ".join("?" for _ in _COLUMNS)
        connection.executemany(f"INSERT INTO runs VALUES ({marks})", (_row(r, path.parent) for r in results))
        connection.commit()
    finally:
        connection.close()
    os.replace(temporary, path)


def _row(result: Result, root: Path) -> list[object]:
    values = {**vars(result), "path": os.path.relpath(result.path, root)}
    return [json.dumps(v) if isinstance(v, dict) else v for v in (values[name] for name in _COLUMNS)]
