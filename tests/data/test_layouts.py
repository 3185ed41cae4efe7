"""Every task of VTAB-1k and FGVC in its layout: read, checked, trained on; and what is damaged is named."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import layouts
import pytest

from orthotune.data import scan
from orthotune.data.check import check
from orthotune.errors import InputError
from orthotune.protocols import Protocol, Task, load_protocol
from orthotune.training import evaluate, fit
from training.tiny import config

TASKS = [pytest.param(p, t, id=f"{p.name}-{t.name}") for p, t in layouts.tasks()]
DAMAGED = [("vtab-1k", "cifar100"), ("vtab-1k", "dtd"), ("fgvc", "flowers102"), ("fgvc", "stanford_cars")]


@pytest.mark.parametrize(("protocol", "task"), TASKS)
def test_a_copy_has_only_the_counts_wrong(protocol: Protocol, task: Task, tmp_path: Path) -> None:
    layouts.make(tmp_path, protocol, task, layouts.Shrink(6))
    checked = check(task.at(str(tmp_path)).data, task.expect, quick=True)
    severe = [p.text for p in checked.problems if p.severity != "note"]
    assert checked.counts["classes"] == task.expect["classes"]
    assert len(severe) == 3
    for split, text in zip(("train", "val", "test"), severe, strict=True):
        assert text.startswith(f"{split}: {checked.counts[split]} instead of the {task.expect[split]:,} of")


@pytest.mark.parametrize("kind", get_args(layouts.Damage))
@pytest.mark.parametrize(("protocol", "task"), DAMAGED)
def test_damage_is_named(kind: layouts.Damage, protocol: str, task: str, copy) -> None:  # type: ignore[no-untyped-def]
    data, folder = copy(protocol, task)
    scan(data)
    image = layouts.damage(folder, kind)
    rule = {"missing image": "does not exist", "label out of range": "is out of range", "overlapping splits": "in both"}
    with pytest.raises(InputError, match=rule[kind]) as caught:
        scan(data)
    assert image in str(caught.value)
    named = [p for p in check(data, load_protocol(protocol).tasks[task].expect).problems if p.severity == "error"]
    assert [p for p in named if image in p.text and rule[kind] in p.text]
    assert len(named) == 1


def test_every_damage_is_listed_at_once(copy) -> None:  # type: ignore[no-untyped-def]
    data, folder = copy("vtab-1k", "svhn")
    kinds = ("overlapping splits", "label out of range")
    images = [layouts.damage(folder, kind) for kind in kinds]
    (folder / "images" / "train800" / "000003.png").unlink()
    (folder / "images" / "train800" / "000004.png").write_bytes(b"no image")
    texts = [p.text for p in check(data).problems if p.severity == "error"]
    assert [any(image in text for text in texts) for image in (*images, "000003.png", "000004.png")] == [True] * 4


@pytest.mark.parametrize(("protocol", "task"), [("vtab-1k", "eurosat"), ("fgvc", "flowers102")])
def test_a_run_trains_and_is_evaluated_on_a_copy(protocol: str, task: str, copy, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data, _ = copy(protocol, task, 12)
    augment = "fgvc" if protocol == "fgvc" else "vtab"
    metrics = fit(config(Path(data), tmp_path / "run", augment=augment, epochs=1), quiet=True)
    count = 12 if protocol == "vtab-1k" else 102
    assert [metrics.data[name]["images"] for name in ("train", "val", "test")] == [count] * 3
    assert [w.partition(":")[0] for w in metrics.data["warnings"]] == ["train", "val", "test"]
    assert metrics.test is not None
    assert evaluate(tmp_path / "run", data, quiet=True).top1 == metrics.test["top1"]
    assert evaluate(tmp_path / "run", data, "val", quiet=True).images == count


def test_join_takes_train800val200_itself(copy) -> None:  # type: ignore[no-untyped-def]
    data, _ = copy("vtab-1k", "pets")
    joined = scan(data, "join")
    assert joined.val is None
    assert {p.name.split("/")[1] for p in joined.train.images} == {"train800val200"}
    assert [len(scan(data, choice).train) for choice in ("auto", "none", "join")] == [30, 30, 60]  # type: ignore[arg-type]


def test_a_copy_with_train800val200_alone_is_split_or_whole(copy) -> None:  # type: ignore[no-untyped-def]
    data, folder = copy("vtab-1k", "camelyon")
    for name in ("train800", "val200"):
        (folder / f"{name}.txt").unlink()
    auto, join = scan(data, "auto"), scan(data, "join")
    assert auto.val is not None
    assert (len(auto.train) + len(auto.val), len(join.train)) == (60, 60)


def test_labels_of_vpt_are_class_indices_in_order(copy) -> None:  # type: ignore[no-untyped-def]
    data, folder = copy("fgvc", "cub200")
    found = scan(data)
    assert found.classes == tuple(map(str, range(1, 201)))
    assert found.test is not None
    assert found.test.images[7].name == "008.Species_8/Species_8_0408_408.jpg"
    assert found.test.labels[7] == 7
    assert Path(str(found.test.images[7])).is_relative_to(folder / "images")


@pytest.mark.parametrize(("name", "tasks", "tests"), [("vtab-1k", 19, 387_904), ("fgvc", 5, 53_197)])
def test_protocols_group_every_task_and_expect_the_published_counts(name: str, tasks: int, tests: int) -> None:
    protocol = load_protocol(name)
    grouped = [task for group in protocol.groups.values() for task in group]
    assert sorted(grouped) == sorted(protocol.tasks)
    assert len(grouped) == tasks
    assert sum(task.expect["test"] for task in protocol.tasks.values()) == tests
