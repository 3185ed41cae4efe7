"""Tables against numbers worked out by hand, and read back from every format."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orthotune.cli import main
from orthotune.errors import InputError
from orthotune.papers.results import paper_table
from orthotune.reporting import Layout, Table, build_table, render
from orthotune.reporting.formats import MISSING
from orthotune.reporting.runs import load_runs, select
from reporting.results import write_run

GROUPS = {"natural": ["a", "b"], "structured": ["c"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """goft: a 50, 54; b 70, 70; c 20, 24. rlrr: a 52, 52.06; b 60, 64; c is missing. ssf failed."""
    root = tmp_path_factory.mktemp("table")
    for task, scores in {"a": (0.5, 0.54), "b": (0.7, 0.7), "c": (0.2, 0.24)}.items():
        for seed, score in enumerate(scores):
            write_run(root, "goft", task, seed, score, parameters=1500, top5=score + 0.1)
    for task, scores in {"a": (0.52, 0.5206), "b": (0.6, 0.64)}.items():
        for seed, score in enumerate(scores):
            write_run(root, "rlrr", task, seed, score, parameters=2500, step=0.2, top5=score + 0.2)
    write_run(root, "ssf", "a", 0, None, status="failed", error="out of memory")
    return root


def table(folder: Path, **layout: object) -> Table:
    return build_table(load_runs([str(folder)]), Layout(**{"groups": GROUPS, **layout}))


def cell(made: Table, row: str, column: str) -> object:
    titles = [c.title for c in made.columns]
    return next(r for r in made.rows if r.name == row).cells[titles.index(column)]


def test_columns_follow_the_groups(folder: Path) -> None:
    titles = [c.title for c in table(folder).columns]
    assert titles == ["a", "b", "natural", "c", "structured", "mean", "parameters (M)"]


@pytest.mark.parametrize(
    ("row", "column", "mean", "deviation"),
    [
        ("goft", "a", 52.0, 4 / 2**0.5),  # 50 and 54: of two values it is their distance over the root of 2
        ("goft", "b", 70.0, 0.0),
        ("goft", "natural", 61.0, 2 / 2**0.5),  # 60 and 62 at the two seeds
        ("goft", "mean", 48.0, 8 / 3 / 2**0.5),  # 140/3 and 148/3
        ("rlrr", "natural", 57.015, 2.03 / 2**0.5),  # 56 and 58.03
        ("goft", "parameters (M)", 0.0015, None),
    ],
)
def test_means_and_deviations(folder: Path, row: str, column: str, mean: float, deviation: float | None) -> None:
    found = cell(table(folder), row, column)
    assert found.mean == pytest.approx(mean)
    assert found.deviation == (None if deviation is None else pytest.approx(deviation))


def test_a_mean_with_a_part_missing_is_missing_unless_asked_for(folder: Path) -> None:
    assert cell(table(folder), "rlrr", "c").mean is None
    assert cell(table(folder), "rlrr", "mean").mean is None
    partial = cell(table(folder, partial=True), "rlrr", "mean")
    assert (partial.mean, partial.of, partial.mark) == (pytest.approx(57.015), (2, 3), "")
    assert "57.0 ± 1.4 (2/3)" in render(table(folder, partial=True), "markdown")


def test_mean_over_groups(folder: Path) -> None:
    assert cell(table(folder, mean="groups"), "goft", "mean").mean == pytest.approx((61 + 22) / 2)


def test_a_group_of_which_a_task_was_run_by_none_has_no_mean(folder: Path) -> None:
    made = table(folder, groups={"natural": ["a", "b", "absent"]})
    assert cell(made, "goft", "natural").mean is None
    assert cell(made, "goft", "mean").mean is None


def test_marks_are_of_the_printed_numbers(folder: Path) -> None:
    """52.0 and 52.03 are printed alike, so both are best; with two digits one of them is."""
    marks = [cell(table(folder), row, "a").mark for row in ("goft", "rlrr")]
    assert marks == ["best", "best"]
    marks = [cell(table(folder, decimals=2), row, "a").mark for row in ("goft", "rlrr")]
    assert marks == ["second", "best"]


def test_notes_say_what_is_missing_and_failed(folder: Path) -> None:
    notes = " ".join(table(folder).notes)
    assert "over 2 seeds" in notes
    assert "1 run failed" in notes
    assert "\N{EN DASH} (3)" in notes  # rlrr: c, structured, mean


def test_other_metrics_and_costs(folder: Path) -> None:
    made = table(folder, metrics=["top1", "top5"], costs=["trained", "step_time", "train_time", "memory"], groups={})
    assert cell(made, "goft", "a top5").mean == pytest.approx(62.0)
    costs = [cell(made, "rlrr", c.title).mean for c in made.columns if c.kind == "cost"]
    assert costs == pytest.approx([0.0026, 200.0, 6.0, 256.0])


def test_rows_of_settings(tmp_path: Path) -> None:
    for r, score in ((16, 0.7), (2, 0.5), (8, 0.6)):
        write_run(tmp_path, "lora", "a", 0, score, settings={"adapter.r": r})
    made = build_table(load_runs([str(tmp_path)]), Layout(rows=["adapter.r"]))
    assert [row.name for row in made.rows] == ["adapter.r=2", "adapter.r=8", "adapter.r=16"]
    kept = select(load_runs([str(tmp_path)]), ["adapter.r=8"])
    assert [run.score() for run in kept] == [60.0]


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        write_run(tmp_path, "goft", "a", 0, 0.5, settings={"lr": lr})
    with pytest.raises(InputError, match="goft on a has two runs with seed 0, which differ in lr: add lr to --rows"):
        build_table(load_runs([str(tmp_path)]))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"rows": ["epoch"]}, "'epoch' is no setting of these runs; did you mean epochs"),
        ({"metrics": ["top3"]}, "'top3' is no score of these runs; did you mean top"),
        ({"phase": "search"}, "no.* score of the search phase: try --phase final"),
        ({"paper": paper_table("rlrr_vtab1k"), "columns": "seed"}, "--paper compares tasks"),
    ],
)
def test_bad_layouts(folder: Path, layout: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        table(folder, **layout)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("lr", "not of the form NAME=VALUE"),
        ("task=zz", "no run has it; task is one of: a, b, c"),
        ("tsk=a", "did you mean task"),
    ],
)
def test_bad_conditions(folder: Path, condition: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(load_runs([str(folder)]), [condition])


@pytest.fixture(scope="module")
def vtab(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """RLRR on two tasks of VTAB-1k, one under the name that its folder has, beside the paper's 75.6 and 92.4."""
    root = tmp_path_factory.mktemp("vtab")
    write_run(root, "rlrr", "cifar", 0, 0.766, method="rlrr")
    write_run(root, "rlrr", "caltech101", 0, 0.914)
    write_run(root, "goft|&_<b>", "cifar", 0, 0.7, method="goft")
    layout = Layout(paper=paper_table("rlrr_vtab1k"), title="50 % & more")
    return build_table(load_runs([str(root)]), layout)


def test_beside_the_paper(vtab: Table) -> None:
    assert [row.paper for row in vtab.rows] == [None, "RLRR"]
    assert cell(vtab, "rlrr", "cifar").paper == 75.6
    assert cell(vtab, "rlrr", "cifar").difference == pytest.approx(1.0)
    assert cell(vtab, "rlrr", "caltech101").difference == pytest.approx(-1.0)
    assert cell(vtab, "rlrr", "mean").paper == pytest.approx(84.0)
    notes = " ".join(vtab.notes)
    assert "RLRR Table 2, vit_base_patch16_224 (in21k); these runs: deit_tiny_patch16_224" in notes
    assert "Not compared: goft" in notes


def test_a_variant_of_a_method_is_not_compared_with_the_method(tmp_path: Path) -> None:
    write_run(tmp_path, "rlrr-r4", "cifar100", 0, 0.7, method="rlrr")
    write_run(tmp_path, "rlrr*", "cifar100", 0, 0.7, method="rlrr")
    made = build_table(load_runs([str(tmp_path)]), Layout(paper=paper_table("rlrr_vtab1k")))
    assert {row.name: row.paper for row in made.rows} == {"rlrr*": "RLRR*", "rlrr-r4": None}


def test_a_group_of_all_columns_has_the_only_mean(folder: Path) -> None:
    titles = [c.title for c in table(folder, groups={"all": ["a", "b", "c"]}, costs=[]).columns]
    assert titles == ["a", "b", "c", "all"]


def test_csv_has_the_numbers(vtab: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(render(vtab, "csv"))))
    assert rows[1]["method"] == "rlrr"
    assert rows[1]["paper's row"] == "RLRR"
    numbers = {key: float(rows[1][key]) for key in ("cifar", "cifar paper", "cifar difference", "cifar seeds")}
    assert numbers == {"cifar": 76.6, "cifar paper": 75.6, "cifar difference": 1.0, "cifar seeds": 1}
    assert rows[0]["cifar paper"] == ""
    assert rows[0]["caltech101"] == ""


def test_markdown(vtab: Table) -> None:
    lines = [line for line in render(vtab, "markdown", second=True).splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0] == ["method", "caltech101", "cifar", "mean", "parameters (M)"]
    assert cells[2] == [r"goft\|&_<b>", MISSING, "<u>70.0</u>", MISSING, "0.001"]
    assert cells[3] == ["rlrr", "**91.4**", "**76.6**", "**84.0**", "0.001"]
    assert cells[4] == ["paper: RLRR", "92.4", "75.6", "84.0", "0.330"]
    assert cells[5] == ["difference", "\N{MINUS SIGN}1.0", "+1.0", "0.0", ""]


def test_latex(vtab: Table) -> None:
    text = render(vtab, "latex", second=True)
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    assert rows[0] == ["method", "caltech101", "cifar", "mean", "parameters (M)"]
    assert rows[1] == [r"goft|\&\_\textless{}b\textgreater{}", "--", r"\underline{70.0}", "--", "0.001"]
    assert rows[2][:3] == ["rlrr", r"\textbf{91.4}", r"\textbf{76.6}"]
    assert rows[4] == [r"\quad difference", "$-$1.0", "+1.0", "0.0", ""]
    assert r"\caption{50 \% \& more}" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


class _Cells(HTMLParser):
    """The texts of the cells of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_html(vtab: Table) -> None:
    text = render(vtab, "html")
    cells = _Cells()
    cells.feed(re.search(r"<table>.*</table>", text, re.DOTALL)[0])
    rows = [[c.strip() for c in row] for row in cells.rows]
    assert rows[0] == ["method", "caltech101", "cifar", "mean", "parameters (M)"]
    assert rows[1][0] == "goft|&_<b>"
    assert rows[2] == ["rlrr", "91.4", "76.6", "84.0", "0.001"]
    assert "<h1>50 % &amp; more</h1>" in text


def test_terminal(vtab: Table) -> None:
    lines = render(vtab, "table").splitlines()
    assert lines[0] == "50 % & more"
    assert lines[3].split() == ["rlrr", "91.4*", "76.6*", "84.0*", "0.001"]


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.csv"
    arguments = ["table", str(folder), "--format", "csv", "--groups.natural", "[a,b]", "--costs", "[]"]
    assert main([*arguments, "--where", "name=goft", "--out", str(out)]) == 0
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert (row["method"], float(row["natural"])) == ("goft", 61.0)
    assert "parameters (M)" not in row
    assert main([*arguments, "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paper", "rlrr_vtab"], "paper table 'rlrr_vtab' is unknown; did you mean rlrr_vtab1k"),
        (["--groups.natural", "3"], "--groups.natural is 3; it must be a list"),
        (["--decimals", "-1"], "--decimals is -1"),
        (["--format", "tex"], "--format"),
        (["--protocol", "vtb"], "protocol 'vtb' is unknown"),
    ],
)
def test_bad_arguments(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["table", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err
