"""The index and the table that a sweep leaves."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from orthotune.experiments.index import write_index
from orthotune.experiments.results import Result, load_results
from orthotune.experiments.summary import summary


def saved(folder: Path, **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "phase": "final",
        "task": "a",
        "name": "goft",
        "method": "goft",
        "settings": {},
        "seed": 0,
    }
    fields.update(status="finished", metric="top1", seed=0, config={"lr": 0.1}, settings={"lr": 0.1})
    fields.update(changes)
    result = Result(**{"id": f"{fields['task']}-{fields['name']}-{fields['seed']}", **fields, "path": folder})
    result = Result(**{**vars(result), "path": folder / "runs" / result.id})
    result.save()
    return result


def test_results_are_read_as_written(tmp_path: Path) -> None:
    written = [saved(tmp_path, seed=1, score=0.5), saved(tmp_path, seed=0, status="failed", error="é <b>")]
    assert load_results(tmp_path) == written[::-1]
    values = json.loads((written[0].path / "trial.json").read_text())
    assert (values["score"], values["config"]) == (0.5, {"lr": 0.1})


def test_index_holds_every_result_and_can_be_made_again(tmp_path: Path) -> None:
    saved(tmp_path, seed=0, score=0.5)
    saved(tmp_path, seed=1, status="failed", error="lost")
    for _ in range(2):
        write_index(load_results(tmp_path), tmp_path / "index.sqlite")
        connection = sqlite3.connect(tmp_path / "index.sqlite")
        rows = connection.execute("SELECT seed, score, error, settings, path FROM runs ORDER BY seed").fetchall()
        connection.close()
        assert rows == [
            (0, 0.5, None, '{"lr": 0.1}', "runs/a-goft-0"),
            (1, None, "lost", '{"lr": 0.1}', "runs/a-goft-1"),
        ]


def test_table_has_mean_and_deviation(tmp_path: Path) -> None:
    results = [saved(tmp_path, seed=seed, score=score) for seed, score in enumerate((0.5, 0.6, 0.7))]
    results += [saved(tmp_path, task="b", score=0.8), saved(tmp_path, name="lora", score=0.3)]
    results += [
        saved(tmp_path, task="b", name="lora", status="failed"),
        saved(tmp_path, phase="search", score=1.0, seed=9),
    ]
    head, lines = summary(results, ["goft", "lora"], ["a", "b"])
    assert head == ["method", "a", "b", "mean"]
    # mean 60, sample deviation 10 (closed form); lora has no result on b, so no mean
    assert lines == [["goft", "60.00 ± 10.00", "80.00", "70.00"], ["lora", "30.00", "-", "-"]]
