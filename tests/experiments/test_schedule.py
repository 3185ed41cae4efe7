"""What a sweep runs, in which order, and what it does not run again."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments.tiny_sweep import execute_here, schedule, sweep_values
from orthotune.errors import InputError
from orthotune.experiments import identity, worker
from orthotune.experiments.config import Row
from orthotune.experiments.plan import Cell
from orthotune.experiments.results import Result, load_results
from orthotune.experiments.schedule import Schedule
from orthotune.protocols import Task
from orthotune.training import Metrics
from training.tiny import write_digits


@pytest.fixture(scope="module")
def done(tasks: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Schedule]:
    """A finished sweep of two rows on two tasks: its settings and its schedule."""
    values = sweep_values(tmp_path_factory.mktemp("sweep") / "out", tasks=tasks)
    todo = schedule(values)
    assert todo.total == 12  # per task: two learning rates of goft, two seeds of goft and of linear
    execute_here(todo)
    assert todo.is_finished()
    return values, todo


def result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "phase": "search",
        "task": "t",
        "name": "goft",
        "method": "goft",
        "settings": {},
        "seed": 0,
    }
    return Result(**{**fields, "status": "finished", "metric": "top1", **changes})


def test_a_search_chooses_on_validation_images_and_never_scores_test(done: tuple[dict[str, Any], Schedule]) -> None:
    searches = [r for r in done[1].results.values() if r.phase == "search"]
    assert Counter((r.task, r.name) for r in searches) == {("three", "goft"): 2, ("four", "goft"): 2}
    for found in searches:
        metrics = found.metrics()
        assert metrics is not None
        assert metrics.test is None
        assert metrics.data["test"] is None
        assert found.score == metrics.best["val_accuracy"]
        assert found.loss == metrics.best["val_loss"]
    assert {r.metrics().data["val"]["images"] for r in searches if r.task == "three"} == {9}  # type: ignore[union-attr]


def test_final_runs_train_on_train_and_val_with_the_best_point(done: tuple[dict[str, Any], Schedule]) -> None:
    results = list(done[1].results.values())
    finals = [r for r in results if r.phase == "final"]
    assert Counter((r.task, r.name) for r in finals) == dict.fromkeys(
        ((task, name) for task in ("three", "four") for name in ("goft", "linear")), 2
    )
    for found in finals:
        metrics = found.metrics()
        assert metrics is not None
        assert metrics.data["train"]["images"] == {"three": 3 * (6 + 3), "four": 4 * 6}[found.task]
        assert metrics.data["val"] is None
        assert metrics.test is not None
        assert found.score == metrics.test["top1"]
        tried = [r for r in results if r.phase == "search" and (r.task, r.name) == (found.task, found.name)]
        if tried:
            assert found.settings == max(tried, key=lambda r: (r.score, -r.loss)).settings  # type: ignore[operator]
            assert metrics.config["lr"] == found.settings["lr"]


def test_final_runs_of_a_cell_follow_its_search_at_once(tasks: dict[str, dict[str, str]], tmp_path: Path) -> None:
    todo = schedule(sweep_values(tmp_path / "out", tasks=tasks, methods=["goft"], seeds=[0]))
    order = []
    while trial := todo.next():
        order.append((trial.task, trial.phase))
        todo.hear(trial.result(status="finished", score=0.5, loss=1.0))
    cell = ["search", "search", "final"]
    assert order == [(task, phase) for task in ("three", "four") for phase in cell]


def test_nothing_is_handed_out_while_a_search_is_running(three: Path, tmp_path: Path) -> None:
    values = sweep_values(tmp_path / "out", tasks={"three": {"data": str(three)}}, methods=["goft"])
    todo = schedule(values)
    first, second = todo.next(), todo.next()
    assert first is not None
    assert second is not None
    assert todo.next() is None
    todo.hear(second.result(status="finished", score=0.5, loss=1.0))
    assert todo.next() is None
    todo.hear(first.result(status="finished", score=0.4, loss=1.0))
    final = todo.next()
    assert final is not None
    assert (final.phase, final.settings) == ("final", second.settings)


def test_finished_runs_are_not_run_again(done: tuple[dict[str, Any], Schedule]) -> None:
    again = schedule(done[0])
    assert (again.known, again.total, again.is_finished()) == (12, 12, True)
    assert again.next() is None
    assert again.results == done[1].results


def test_a_run_is_its_content_not_its_place(
    done: tuple[dict[str, Any], Schedule], tasks: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    shutil.copytree(tasks["three"]["data"], tmp_path / "moved")
    moved = {**done[0], "tasks": {"three": {"data": str(tmp_path / "moved")}}}
    assert schedule(moved).known == 6
    image = next((tmp_path / "moved" / "train" / "digit1").iterdir())
    image.unlink()
    assert schedule(moved).known == 0


OTHER_SEEDS = {"seeds": [5], "selection": {"seeds": [0]}, "grid": {"lr": [1e-1, 1e-2, 1.0]}}


@pytest.mark.parametrize("changes", [{"fit": {"epochs": 2}}, OTHER_SEEDS])
def test_other_settings_are_other_runs(done: tuple[dict[str, Any], Schedule], changes: dict[str, Any]) -> None:
    values = {**done[0], **changes, "fit": {**done[0]["fit"], **changes.get("fit", {})}}
    known = schedule(values).known
    assert known == (0 if "fit" in changes else 2)  # of the search the one point that is in both grids


def test_another_code_makes_other_runs(done: tuple[dict[str, Any], Schedule], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "code_version", lambda: "0.0.0+other")
    assert schedule(done[0]).known == 0


def test_only_settings_of_the_result_count(done: tuple[dict[str, Any], Schedule]) -> None:
    values = {**done[0], "fit": {**done[0]["fit"], "cache_mb": 7}}
    assert schedule(values).known == 12


def test_a_failing_run_is_recorded_and_the_others_go_on(three: Path, tmp_path: Path) -> None:
    values = sweep_values(tmp_path / "out", tasks={"three": {"data": str(three)}}, methods=["linear"])
    values["grid"] = {"lr": [1e30, 1e-2]}
    todo = schedule(values)
    execute_here(todo)
    (failed,) = todo.failed
    assert failed.settings == {"lr": 1e30}
    assert failed.error is not None
    assert "try a smaller --lr" in failed.error
    finals = [r for r in todo.results.values() if r.phase == "final"]
    assert [r.settings for r in finals] == [{"lr": 1e-2}] * 2
    assert schedule(values).next() is None
    again = schedule(values, rerun_failed=True)
    assert execute_here(again) == [failed.id]


def test_a_search_that_fails_as_a_whole_has_no_final_runs(three: Path, tmp_path: Path) -> None:
    values = sweep_values(tmp_path / "out", tasks={"three": {"data": str(three)}}, methods=["linear", "goft"])
    values["methods"][0] = {"method": "linear", "grid": {"lr": [1e30, 2e30]}}
    todo = schedule(values)
    execute_here(todo)
    assert todo.is_finished()
    assert (len(todo.failed), todo.total, todo.impossible) == (2, 6, 2)


def test_a_metric_that_is_no_score_of_the_test_is_named(three: Path, tmp_path: Path) -> None:
    values = sweep_values(tmp_path / "out", tasks={"three": {"data": str(three), "metric": "f1"}}, methods=["linear"])
    todo = schedule({**values, "grid": {}, "seeds": [0]})
    execute_here(todo)
    (failed,) = todo.failed
    assert failed.error == "metric 'f1' is not among the test scores (images, loss, top1, per_class_mean)"


class Interrupt(BaseException):
    """Ends a run as a signal does."""


def test_an_interrupted_run_goes_on_after_its_last_epoch(three: Path, tmp_path: Path) -> None:
    def interrupt(entry: dict[str, float]) -> None:
        raise Interrupt

    curves = []
    for name in ("whole", "interrupted"):
        values = sweep_values(tmp_path / name, tasks={"three": {"data": str(three)}}, methods=["linear"], grid={})
        values["fit"]["epochs"] = 3
        trial = schedule(values).next()
        assert trial is not None
        if name == "interrupted":
            with pytest.raises(Interrupt):
                worker.execute(trial, 1, interrupt)
            assert (trial.path / "checkpoint.pt").is_file()
            assert not (trial.path / "trial.json").exists()
        heard: list[float] = []
        found = worker.execute(trial, 1, lambda entry, heard=heard: heard.append(entry["epoch"]))
        assert heard == [1, 2, 3]
        metrics = found.metrics()
        assert metrics is not None
        curves.append([{k: v for k, v in entry.items() if k != "seconds"} for entry in metrics.curve])
    assert curves[0] == curves[1]


def test_an_interrupted_run_whose_data_moved_starts_anew(three: Path, tmp_path: Path) -> None:
    trials = []
    for name in ("first", "second"):
        shutil.copytree(three, tmp_path / name)
        values = sweep_values(
            tmp_path / "out", tasks={"t": {"data": str(tmp_path / name)}}, methods=["linear"], grid={}
        )
        trials.append(schedule(values).next())
    first, second = trials
    assert first is not None
    assert second is not None
    assert first.id == second.id

    def interrupt(entry: dict[str, float]) -> None:
        raise Interrupt

    with pytest.raises(Interrupt):
        worker.execute(first, 1, interrupt)
    assert worker.execute(second, 1).status == "finished"


def test_best_point_by_score_then_loss_then_order() -> None:
    points = [{"lr": lr} for lr in (1, 2, 3, 4, 5)]
    #         lower score  higher loss  best        as good, later  one seed failed
    scores = [(0.5, 0.1), (0.6, 0.3), (0.6, 0.2), (0.6, 0.2), (0.9, 0.1)]
    cell = Cell(Row("goft", "goft"), Task("t", "data"), points)
    results: dict[str, Result] = {}
    for point, (score, loss) in zip(points, scores, strict=True):
        for seed, delta in ((0, -0.25), (1, 0.25)):  # exact in binary: the mean over the seeds is the score
            found = result(id=f"{point['lr']}-{seed}", settings=point, seed=seed, score=score + delta, loss=loss)
            if point["lr"] == 5 and seed:
                found = result(id=found.id, settings=point, seed=seed, status="failed")
            results[found.id] = found
            cell.searches.append(found)  # type: ignore[arg-type]  # a trial has the same fields
    assert cell.best(results) == {"lr": 3}


def test_plain_fit_folders_are_results(done: tuple[dict[str, Any], Schedule], tmp_path: Path) -> None:
    run = next(r for r in done[1].results.values() if r.phase == "final" and r.task == "four")
    shutil.copytree(run.path, tmp_path / "runs" / "mine")
    (tmp_path / "runs" / "mine" / "trial.json").unlink()
    (found,) = load_results(tmp_path)
    assert (found.id, found.task, found.name, found.seed) == ("mine", "four", run.name, run.seed)
    assert found.score == run.score
    assert Metrics.load(found.path / "metrics.json").config == found.config


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_results(tmp_path / "none")
    with pytest.raises(InputError, match="holds no finished run"):
        load_results(tmp_path)
    (tmp_path / "trial.json").write_text("{}")
    with pytest.raises(InputError, match="is not the result of a run"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("{}", ("", "{}", "")),
        ("vtab:{}/three", ("vtab:", "{}/three", "")),
        ("torchvision:CIFAR100@{}?download=true", ("torchvision:CIFAR100@", "{}", "?download=true")),
        ("hf:{}?label=fine", ("hf:", "{}", "?label=fine")),
        ("hf:cifar10?label=fine", ("hf:cifar10?label=fine", None, "")),
    ],
)
def test_paths_in_data_with_schemes(where: str, found: tuple[str, str | None, str], three: Path) -> None:
    root = str(three.parent)
    before, path, after = identity.locate(where.format(root))
    assert (before, after) == (found[0], found[2])
    assert (path and str(path)) == (found[1] and found[1].format(root))
    assert identity.absolute(where.format(root)) == where.format(root)


def test_what_is_read_of_a_folder_is_part_of_its_fingerprint(three: Path) -> None:
    prints = identity.Fingerprints()
    plain = prints.of(str(three))
    assert prints.of(f"hf:{three}?label=fine") == f"hf:{plain}?label=fine"


@pytest.mark.parametrize("where", ["/no/such", "vtab:/no/such", "hf:./none"])
def test_missing_paths_are_refused(where: str) -> None:
    with pytest.raises(InputError, match=f"'{where}' does not exist"):
        identity.locate(where)


def test_fingerprints_are_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_digits(tmp_path / "data", train=1, test=1)
    first = identity.Fingerprints(tmp_path / "memory.json").of(str(data))
    read = monkeypatch.setattr(identity, "_content", lambda *_: "read")
    assert read is None
    assert identity.Fingerprints(tmp_path / "memory.json").of(str(data)) == first
    (data / "train" / "digit0" / "new.png").write_bytes(b"x")
    assert identity.Fingerprints(tmp_path / "memory.json").of(str(data)) == "read"
