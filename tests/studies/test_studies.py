"""Every row of every study is a model that can be built, with as many parameters as the papers give."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from orthotune import InputError
from orthotune.cli import main
from orthotune.experiments.config import SweepConfig
from orthotune.fields import adapter_values
from orthotune.papers.parameters import MEAN_CLASSES, count
from orthotune.papers.results import paper_table
from orthotune.studies import about, names, study
from orthotune.training.config import FitConfig


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load(study(name).read_text())


def settings(file: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {**file.get("fit", {}).get("adapter", {}), **row.get("adapter", {})}


IMAGES = [name for name in names() if content(name)["model"].startswith("vit_base_")]
ROWS = [(name, row["name"]) for name in IMAGES for row in content(name)["methods"]]


@pytest.fixture(scope="module")
def built() -> dict[str, int]:
    """Parameters of adapters that were counted already: many rows are those of other studies."""
    return {}


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_is_a_model(name: str, row: str, built: dict[str, int]) -> None:
    file = content(name)
    (entry,) = [entry for entry in file["methods"] if entry["name"] == row]
    key = json.dumps([file["model"], entry["method"], settings(file, entry)])
    if key not in built:
        built[key] = count(file["model"], entry["method"], 10, settings(file, entry)).adapter
    assert (built[key] > 0) == (entry["method"] != "linear")


@pytest.mark.parametrize("name", names())
def test_a_file_is_a_sweep(name: str) -> None:
    file = content(name)
    config = SweepConfig.load(study(name), root="DATA")
    assert config.out.parts[-2:] == ("runs", name)
    assert config.protocol is not None
    assert len(config.rows) == len(file["methods"]) > 1
    assert "arXiv" in about(name)
    for row in config.rows:
        for point in row.points():
            settings = config.settings(row, config.tasks[0], point)
            FitConfig.from_mapping({**settings, "out": "x"})
            adapter_values(row.method, settings["adapter"])


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        ("rlrr-vtab1k", "rlrr_vtab1k"),
        ("rlrr-fgvc", "rlrr_fgvc"),
        ("qgoft-vtab1k", "qgoft_vtab1k"),
        ("qgoft-glue", "qgoft_glue"),
        ("qgoft-squad", "qgoft_squad"),
        ("qgoft-instruction", "qgoft_instruction"),
        ("rlrr-table10", "rlrr_table10"),
        ("rlrr-table11", "rlrr_table11"),
    ],
)
def test_rows_have_the_names_of_the_papers(name: str, paper: str) -> None:
    published = {row.name for row in paper_table(paper).rows}
    extra = {"no-op (ours)"}
    assert {entry["name"] for entry in content(name)["methods"]} - extra <= published


# RLRR, tables 6 (FGVC), 10 and 11 (VTAB-1k): millions of parameters, the head included
@pytest.mark.parametrize(
    ("name", "row", "millions"),
    [
        ("rlrr-table6", "both, no residual", 0.47),
        ("rlrr-table6", "both, residual (RLRR)", 0.47),
        ("rlrr-table10", "normal", 0.33),
        ("rlrr-table11", "without W", 0.33),
        ("rlrr-table11", "with W (RLRR)", 0.33),
        ("rlrr-table11", "LoRA r=16", 0.63),
    ],
)
def test_parameters_are_the_papers(name: str, row: str, millions: float) -> None:
    file = content(name)
    (entry,) = [entry for entry in file["methods"] if entry["name"] == row]
    adapter = count(file["model"], entry["method"], 10, settings(file, entry)).adapter
    head = 769 * MEAN_CLASSES["fgvc" if file["protocol"] == "fgvc" else "vtab"]
    assert round((adapter + head) / 1e6, 2) == millions


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(InputError, match="study 'rlrr-table7' is unknown; did you mean rlrr-table"):
        study("rlrr-table7")


def test_the_command_lists_and_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == names()
    assert main(["sweep", "rlrr-table6", "--print"]) == 0
    assert capsys.readouterr().out == study("rlrr-table6").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CONFIG is missing"),
        (["rlrr-tabel6"], "study 'rlrr-tabel6' is unknown; did you mean rlrr-table6"),
        (["rlrr-table6"], "say with root: FOLDER where the data are"),
        (["rlrr-table6", "--root", "x", "--only", "cub"], "only: task 'cub' is unknown; did you mean cub200"),
        (["none.yaml"], "'none.yaml' cannot be read"),
    ],
)
def test_what_the_command_cannot_use_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *arguments]) == 2
    assert said in capsys.readouterr().err
