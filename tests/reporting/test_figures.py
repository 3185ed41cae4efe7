"""What the plots and sentences of the report are made of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from orthotune.errors import InputError
from orthotune.reporting import costs, figures, grids, summary
from orthotune.reporting.analyses import load_analyses, movement
from orthotune.reporting.panels import logarithmic
from orthotune.reporting.report import embedded
from orthotune.reporting.runs import Run, load_runs, row_keys
from reporting.results import write_run


def rows(root: Path) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in load_runs([str(root)]):
        if run.result.phase == "final" and run.score() is not None:
            found.setdefault(run.result.name, []).append(run)
    return found


def test_front() -> None:
    """The second costs more and is worse than the first; the fourth is as good as the third, for more."""
    assert costs.front([(1, 50), (2, 40), (3, 60), (4, 60)]) == {0, 2}
    assert costs.front([(1, 50), (1, 50)]) == {0, 1}


def test_scores_over_tasks_are_of_rows_with_all_tasks(tmp_path: Path) -> None:
    for seed, score in ((0, 0.5), (1, 0.7)):
        write_run(tmp_path, "goft", "a", seed, score)
        write_run(tmp_path, "goft", "b", seed, score + 0.1)
    write_run(tmp_path, "rlrr", "a", 0, 0.9)
    scores = figures.task_scores(rows(tmp_path))
    assert scores[figures.ALL] == {"goft": pytest.approx([55.0, 75.0])}
    assert scores["a"]["rlrr"] == [90.0]


def test_curves_are_means_over_seeds_with_their_range(tmp_path: Path) -> None:
    write_run(tmp_path, "goft", "a", 0, 0.5, curve=[0.2, 0.4])
    write_run(tmp_path, "goft", "a", 1, 0.5, curve=[0.4, 0.6])
    traces = figures.curves(rows(tmp_path)).traces
    found = {t["meta"]["role"]: t for t in traces if t["meta"]["shown"]["quantity"] == "train_accuracy"}
    assert found["line"]["y"] == pytest.approx([30.0, 50.0])
    assert found["band"]["x"] == [1, 2, 2, 1]
    assert found["band"]["y"] == pytest.approx([40.0, 60.0, 40.0, 20.0])


def test_grid_lines_are_the_best_over_other_settings(sweep: Path) -> None:
    """The fixture's score is base + 10 lr - weight decay."""
    panel = grids.lines(load_runs([str(sweep)]))
    (line,) = [
        t
        for t in panel.traces
        if t["meta"] == {"method": "goft", "shown": {"task": "dtd", "setting": "lr"}, "role": "line"}
    ]
    assert line["x"] == [0.001, 0.01]
    assert line["y"] == pytest.approx([51.0, 60.0])


def test_heat_has_every_point_of_the_grid(sweep: Path) -> None:
    panel = grids.heat(load_runs([str(sweep)]))
    shown = {"task": "dtd", "pair": "lr, weight_decay", "row": "goft"}
    (cells,) = [t for t in panel.traces if t["meta"]["shown"] == shown]
    assert (cells["x"], cells["y"]) == (["0.001", "0.01"], ["0", "0.1"])
    assert [v for row in cells["z"] for v in row] == pytest.approx([51.0, 60.0, 41.0, 50.0])


def test_plots_without_anything_to_show_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "linear", "a", 0, 0.5, parameters=0)
    found = rows(tmp_path)
    assert figures.seeds(found) is None
    assert figures.defect_curves(found) is None
    assert figures.final_defects(found) is None
    assert grids.lines(found["linear"]) is None
    sizes = costs.costs(found, "size", "", ["parameters", "trained"], "")
    assert {t["meta"]["shown"]["cost"] for t in sizes.traces} == {"trained"}  # zero has no place on a log scale


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([0.60, 0.62], "Next: rlrr, 61.0 ± 1.4 %, 1.0 behind, within the spread over seeds."),
        ([0.50, 0.52], "Next: rlrr, 51.0 ± 1.4 %, 11.0 behind, more than the spread over seeds."),
        ([0.50], "Next: rlrr, 50.0 %, 12.0 behind; one seed does not say whether that is chance."),
    ],
)
def test_sentences(tmp_path: Path, other: list[float], words: str) -> None:
    for seed, score in enumerate((0.61, 0.63)):
        write_run(tmp_path, "goft", "a", seed, score, parameters=500)
    for seed, score in enumerate(other):
        write_run(tmp_path, "rlrr", "a", seed, score, parameters=100)
    said = summary.sentences(rows(tmp_path))
    assert said[:2] == ["Best: goft, 62.0 ± 1.4 % on a.", words]
    near = ["Smallest within two points of it: rlrr, 61.0 % with 100 parameters beside the head."]
    assert said[2:] == (near if other[0] == 0.60 else [])


def test_rows_are_told_apart_by_settings_that_differ(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        write_run(tmp_path, "goft", "a", 0, 0.5, settings={"lr": lr})
    assert row_keys(load_runs([str(tmp_path)])) == ("name", "lr")


def test_ticks_of_a_logarithmic_axis() -> None:
    found = logarithmic([0.01, 100.0])
    assert found["tickvals"] == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert found["range"][0] < -2
    assert found["range"][1] > 2
    assert len(logarithmic([7.0, 15.0])["tickvals"]) >= 2
    assert math.isfinite(logarithmic([3.0])["range"][0])


def test_embedded_json_cannot_end_its_script() -> None:
    value = {"a": "</script><!-- & \u2028"}
    text = embedded(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_analyses(sweep: Path) -> None:
    found = load_analyses([str(sweep)])
    assert list(found) == ["inspected"]
    moved = movement(found).traces
    assert [(t["name"], t["x"], t["y"]) for t in moved if t["meta"]["shown"]["quantity"] == "relative"] == [
        ("attn.proj", [0, 1], [0.1, 0.2]),
        ("mlp.fc1", [0, 1], [0.1, 0.2]),
    ]


def test_a_broken_analysis_is_named(tmp_path: Path) -> None:
    (tmp_path / "analysis.json").write_text('{"layers": 3}')
    with pytest.raises(InputError, match=r"analysis.json' is not the analysis.json of orthotune inspect"):
        load_analyses([str(tmp_path)])
