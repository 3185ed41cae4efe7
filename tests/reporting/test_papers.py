"""The papers' scores: their means are those of their tasks, their methods are the registry's."""

from __future__ import annotations

import pytest

from orthotune.errors import InputError
from orthotune.methods import METHODS
from orthotune.papers.results import PaperRow, paper_table, paper_tables

GROUPS = {
    "natural": ["cifar100", "caltech101", "dtd", "flowers102", "pets", "svhn", "sun397"],
    "specialized": ["camelyon", "eurosat", "resisc45", "retinopathy"],
    "structured": [
        *("clevr_count", "clevr_dist", "dmlab", "kitti_dist"),
        *("dsprites_loc", "dsprites_ori", "snorb_azim", "snorb_ele"),
    ],
}

#: Means that a paper prints although they are not those of the numbers that it prints beside them.
ODD = {
    ("rlrr_vtab1k", "RLRR", "natural"),
    ("rlrr_vtab1k_vit_h", "Bias", "structured"),
    ("rlrr_vtab1k_swin_b", "MLP-4", "structured"),
    ("rlrr_vtab1k_swin_b", "VPT-Shallow", "specialized"),
    ("rlrr_vtab1k_mae", "VPT-Shallow", "natural"),
    ("rlrr_vtab1k_mocov3", "Full fine-tuning", "natural"),
    ("rlrr_vtab1k_mocov3", "RLRR", "structured"),
}

MEANS = [
    pytest.param(row, group, id=f"{table.name}-{row.name}-{group}")
    for table in paper_tables().values()
    for row in table.rows
    for group in GROUPS
    if row.value(group) is not None and row.value(GROUPS[group][0]) is not None
    and (table.name, row.name, group) not in ODD
]  # fmt: skip


@pytest.mark.parametrize(("row", "group"), MEANS)
def test_means_of_groups(row: PaperRow, group: str) -> None:
    """The papers round, or cut off, after one digit."""
    assert row.value(group) == pytest.approx(row.mean(GROUPS[group]), abs=0.0501)


@pytest.mark.parametrize("name", paper_tables())
def test_methods_are_the_registrys(name: str) -> None:
    rows = paper_table(name).rows
    assert rows
    assert {row.method for row in rows} <= {*METHODS, ""}


@pytest.mark.parametrize(
    ("table", "name", "task", "metric", "value"),
    [
        ("rlrr_vtab1k", "rlrr", "cifar", None, 75.6),  # by method, and by the name of the folder
        ("rlrr_vtab1k", "RLRR*", "cifar100", "top1", 76.7),  # by the paper's name of the row
        ("qgoft_squad", "qgoft", "squad", "f1", 93.2),
        ("qgoft_squad", "qgoft", "squad", None, None),  # two metrics: which?
        ("qgoft_glue", "oft b=4", "cola", None, 70.82),
    ],
)
def test_finding_a_number(table: str, name: str, task: str, metric: str | None, value: float) -> None:
    assert paper_table(table).find(name).value(task, metric) == value


def test_a_method_with_two_rows_is_not_guessed() -> None:
    table = paper_table("qgoft_glue")
    assert table.find("oft") is None
    assert [row.name for row in table.rows_of("oft")] == ["OFT b=8", "OFT b=4"]
    assert table.find("") is None


def test_a_mean_that_cannot_be_computed_is_the_printed_one() -> None:
    row = paper_table("aoft_vtab1k").find("h-adapter-aoft")
    assert row.mean(GROUPS["natural"], "natural") == 79.3
    assert row.mean(GROUPS["natural"]) is None


def test_qgofts_mean_is_that_of_the_groups() -> None:
    """Which its mean is of is told by the numbers: over the 19 tasks it is 77.0, over the three groups 79.4."""
    row = paper_table("qgoft_vtab1k").find("qgoft")
    means = [row.mean(tasks) for tasks in GROUPS.values()]
    assert row.value("mean") == pytest.approx(sum(means) / 3, abs=0.0501)
    assert row.mean([task for tasks in GROUPS.values() for task in tasks]) == pytest.approx(77.0, abs=0.05)


def test_an_unknown_table() -> None:
    with pytest.raises(InputError, match="did you mean rlrr_vtab1k"):
        paper_table("rlrr_vtab2k")
