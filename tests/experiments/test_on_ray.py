"""A sweep through Ray Tune gives what the same runs give one after the other; ASHA compares within a cell."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from experiments.tiny_sweep import ended, execute_here, schedule, start, sweep_values
from orthotune.cli.main import main
from orthotune.experiments.results import Result, load_results

pytest.importorskip("ray.tune")


def outcome(results: list[Result]) -> dict[str, tuple[str, float | None, float | None]]:
    return {r.id: (r.status, r.score, r.loss) for r in results}


@pytest.fixture(scope="module")
def swept(three: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """(file, exit status) of a sweep by the command, with a search and a row that fails."""
    folder = tmp_path_factory.mktemp("ray")
    values = sweep_values(folder / "out", tasks={"three": {"data": str(three)}})
    values["methods"].append({"name": "failing", "method": "linear", "grid": {"lr": [1e30]}})
    values["ray"] = {"cpus": 1}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values))
    status = ended(start(folder / "sweep.yaml", folder / "log"), folder / "log")
    assert status != 2, (folder / "log").read_text()
    return folder / "sweep.yaml", status


@pytest.mark.slow
def test_every_run_ends_as_it_does_without_ray(swept: tuple[Path, int], tmp_path: Path) -> None:
    file, status = swept
    assert status == 1  # some failed
    here = schedule({**yaml.safe_load(file.read_text()), "out": str(tmp_path / "here")})
    execute_here(here)
    found = outcome(load_results(file.parent / "out"))
    assert found == outcome(list(here.results.values()))
    assert len(found) == 8
    assert sum(status == "failed" for status, *_ in found.values()) == 2


@pytest.mark.slow
def test_the_folder_holds_index_table_and_settings(swept: tuple[Path, int]) -> None:
    out = swept[0].parent / "out"
    connection = sqlite3.connect(out / "index.sqlite")
    assert connection.execute("SELECT count(*) FROM runs").fetchone() == (8,)
    connection.close()
    assert yaml.safe_load((out / "sweep.yaml").read_text())["seeds"] == [0, 1]
    assert [line.split(" | ")[0] for line in (out / "table.md").read_text().splitlines()[2:]] == [
        "| goft",
        "| linear",
        "| failing",
    ]
    trial = json.loads(next(out.glob("runs/*/trial.json")).read_text())
    assert set(trial) == set(Result.__dataclass_fields__) - {"path"}


@pytest.mark.slow
def test_a_second_call_runs_nothing(
    swept: tuple[Path, int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = swept
    before = {p: p.stat().st_mtime_ns for p in file.parent.glob("out/runs/*/*.json")}
    monkeypatch.setitem(sys.modules, "orthotune.experiments.on_ray", None)  # an import of it would fail
    assert main(["sweep", str(file), "--dry-run"]) == 0
    assert "8 runs, 8 of them done" in capsys.readouterr().out
    assert main(["sweep", str(file)]) == 1
    assert "2 failed, 6 finished" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in file.parent.glob("out/runs/*/*.json")} == before


def test_missing_ray_is_said(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "orthotune.experiments.on_ray", None)
    values = sweep_values(tmp_path / "out", tasks={"three": {"data": str(three)}})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 2
    assert "a sweep needs Ray Tune" in capsys.readouterr().err


@pytest.fixture
def searcher(three: Path, tmp_path: Path) -> Any:
    """A searcher of one search of two runs and one final run, and what it told."""
    from orthotune.experiments.config import RayOptions
    from orthotune.experiments.on_ray import ScheduleSearcher

    values = sweep_values(tmp_path / "out", tasks={"three": {"data": str(three)}}, methods=["goft"], seeds=[0])
    told: list[Result] = []
    found = ScheduleSearcher(schedule(values), RayOptions(scheduler="asha"), told.append)
    found.told = told
    return found


def test_the_searcher_waits_for_results_and_then_ends(searcher: Any) -> None:
    runs = {name: searcher.suggest(name) for name in "ab"}
    assert [run["report"] for run in runs.values()] == [True, True]
    assert searcher.suggest("c") is None
    for name, run in runs.items():
        reported = {**run["trial"], "status": "finished", "score": 0.5, "loss": 1.0}
        searcher.on_trial_complete(name, {"result": json.dumps(reported)})
    final = searcher.suggest("c")
    assert (final["trial"]["phase"], final["report"]) == ("final", False)
    assert searcher.suggest("d") is None
    searcher.on_trial_complete("c", {"result": json.dumps({**final["trial"], "status": "finished", "score": 0.25})})
    assert searcher.suggest("d") == "FINISHED"
    assert [r.score for r in searcher.told] == [0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("ending", "status", "score"),
    [
        ({"error": True}, "failed", None),
        ({"result": {"epoch": 1, "score": 0.1, "loss": 3.0, "time_total_s": 2.0}}, "stopped", 0.1),
        ({"result": {}}, None, None),
    ],
    ids=["died", "stopped", "interrupted"],
)
def test_runs_that_do_not_report_a_result(searcher: Any, ending: Any, status: str | None, score: float | None) -> None:
    path = Path(searcher.suggest("a")["trial"]["config"]["out"])
    searcher.on_trial_complete("a", **ending)
    assert [(r.status, r.score) for r in searcher.told] == ([(status, score)] if status else [])
    assert (path / "trial.json").is_file() == bool(status)


def run_of(task: str, number: int, *, report: bool = True) -> Any:
    """A trial as Ray's schedulers see it."""
    trial = {"task": task, "name": "goft", "config": {"epochs": 9}}
    return SimpleNamespace(trial_id=f"{task}{number}", config={"trial": trial, "report": report})


def test_asha_compares_runs_of_one_cell_only() -> None:
    from orthotune.experiments.on_ray import CellwiseASHA

    asha = CellwiseASHA()
    decisions = {}
    easy, hard = [0.9, 0.8, 0.7], [0.3, 0.2, 0.1]
    for task, scores in (("easy", easy), ("hard", hard)):
        for number, score in enumerate(scores):
            trial = run_of(task, number)
            asha.on_trial_add(None, trial)
            decisions[trial.trial_id] = asha.on_trial_result(None, trial, {"epoch": 1, "score": score})
    # of three scores in falling order, the best third of those seen so far goes on: the first of each task
    assert decisions == {
        "easy0": "CONTINUE",
        "easy1": "STOP",
        "easy2": "STOP",
        "hard0": "CONTINUE",
        "hard1": "STOP",
        "hard2": "STOP",
    }


def test_asha_leaves_final_runs_alone() -> None:
    from orthotune.experiments.on_ray import CellwiseASHA

    asha = CellwiseASHA()
    for number, score in enumerate((0.9, 0.1)):
        trial = run_of("t", number, report=False)
        asha.on_trial_add(None, trial)
        assert asha.on_trial_result(None, trial, {"epoch": 1, "score": score}) == "CONTINUE"
