"""What a sweep file may say, and how it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.tiny_sweep import schedule, sweep_values
from orthotune.cli import main
from orthotune.errors import InputError
from orthotune.experiments.config import SweepConfig
from orthotune.protocols import load_protocol

PROTOCOL = {
    "title": "Digits",
    "source": "scikit-learn",
    "metric": "top1",
    "fit": {"epochs": 7, "batch_size": 4},
    "groups": {"few": ["three"]},
    "tasks": {
        "three": {"data": "{root}/three", "fit": {"batch_size": 3}, "expect": {"classes": 3}},
        "four": {"data": "{root}/four", "metric": "per_class_mean"},
    },
    "grids": {"rlrr": {"lr": [1, 2], "r": 4}, "default": {"lr": [3]}},
}


def protocol_file(folder: Path, **changes: Any) -> str:
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump({**PROTOCOL, **changes}, sort_keys=False))
    return str(path)


def test_protocol_is_read(tmp_path: Path) -> None:
    protocol = load_protocol(protocol_file(tmp_path))
    assert (protocol.name, protocol.title) == ("digits", "Digits")
    assert protocol.tasks["three"].metric == "top1"
    assert protocol.tasks["four"].metric == "per_class_mean"
    assert protocol.grid("rlrr") == {"lr": (1, 2), "r": (4,)}
    assert protocol.grid("goft") == {"lr": (3,)}
    assert protocol.tasks["three"].at("/data/").data == "/data/three"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tittle": "x"}, "'tittle' is unknown; did you mean title"),
        ({"source": None}, "source is None; it must be text"),
        ({"fit": {"epoch": 1}}, "fit: 'epoch' is unknown; did you mean epochs"),
        ({"fit": {"seed": 1}}, "fit: 'seed' is unknown"),
        ({"groups": {"few": ["thre"]}}, "group 'few' has the unknown task 'thre'; did you mean three"),
        ({"tasks": {}}, "tasks is empty"),
        ({"tasks": {"three": {"path": "x"}}}, "task 'three': 'path' is unknown"),
        ({"tasks": {"three": {"data": "x", "expect": {"clases": 3}}}}, "expect: 'clases' is unknown; did you mean cl"),
        ({"grids": {"rlr": {"lr": [1]}}}, "grids: 'rlr' is unknown; did you mean rlrr"),
        ({"grids": {"rlrr": {"lr": []}}}, "lr is empty"),
    ],
)
def test_wrong_protocol_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_protocol(protocol_file(tmp_path, **changes))


def test_unknown_protocol_and_missing_root_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"protocol 'no-such' is unknown; .*\.yaml"):
        load_protocol("no-such")
    with pytest.raises(InputError, match=r"task 'three' is at '\{root\}/three': say with root: FOLDER"):
        SweepConfig.from_mapping(sweep_values(tmp_path, protocol=protocol_file(tmp_path)))


def test_settings_win_in_their_order(tmp_path: Path) -> None:
    values = sweep_values(tmp_path, protocol=protocol_file(tmp_path), root="/data", fit={"epochs": 5}, only=["three"])
    values["methods"] = [{"name": "r", "method": "rlrr", "adapter": {"r": 2}, "fit": {"clip": 1.0}}]
    config = SweepConfig.from_mapping(values)
    (task,), (row,) = config.tasks, config.rows
    found = config.settings(row, task, {"lr": 0.5, "r": 8})
    assert found == {
        "batch_size": 3,  # the protocol's task
        "epochs": 5,  # the sweep
        "clip": 1.0,  # the row
        "lr": 0.5,  # the grid point, also of the adapter
        "adapter": {"r": 8},
        "method": "rlrr",
        "data": "/data/three",
    }


@pytest.mark.parametrize(
    ("grid", "points"), [(None, [{"lr": 1, "r": 4}, {"lr": 2, "r": 4}]), ({"lr": [9]}, [{"lr": 9}])]
)
def test_grid_of_the_sweep_replaces_the_protocols(grid: Any, points: list[dict[str, int]], tmp_path: Path) -> None:
    values = sweep_values(tmp_path, protocol=protocol_file(tmp_path), root="/data", grid=grid, methods=["rlrr"])
    (row,) = SweepConfig.from_mapping(values).rows
    assert list(row.points()) == points


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["goft"]}, "'method' is unknown; did you mean methods"),
        ({"methods": ["gofd"]}, "method 'gofd' is unknown; did you mean goft"),
        ({"methods": []}, r"methods is \[\]; it must be a list of methods"),
        ({"methods": ["goft", "goft"]}, "two rows 'goft'"),
        ({"methods": [{"method": "lora", "adapter": {"rr": 1}}]}, "lora: adapter: 'rr' is unknown"),
        (
            {"grid": {"lrr": [1]}},
            "grid: 'lrr' is neither a setting of fit nor an adapter field of 'goft'; did you mean lr",
        ),
        ({"grid": {"seed": [1]}}, "grid: 'seed' is neither"),
        ({"fit": {"batchsize": 1}}, "fit: 'batchsize' is unknown; did you mean batch_size"),
        ({"seeds": [0.5]}, r"seeds is \[0.5\]; it must be a list of whole numbers"),
        ({"selection": {"seed": [0]}}, "selection: 'seed' is unknown; did you mean seeds"),
        ({"ray": {"cpu": 1}}, "ray: 'cpu' is unknown; did you mean cpus"),
        ({"ray": {"scheduler": "pbt"}}, "ray: scheduler is 'pbt', which is not 'none', 'asha'"),
        ({"ray": {"cpus": 0}}, "ray: cpus is 0; it must be at least 1"),
        ({"only": ["thre"]}, "only: task 'thre' is unknown; did you mean three"),
        ({"protocol": "x.yaml", "tasks": None}, "'x.yaml' cannot be read"),
        ({"tasks": None}, "needs either protocol: NAME or tasks:"),
    ],
)
def test_wrong_sweep_is_refused(
    changes: dict[str, Any], message: str, tasks: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        SweepConfig.from_mapping(sweep_values(tmp_path, **{"tasks": tasks, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"none": {"data": "/no/such"}}}, "row 'goft' on task 'none': '/no/such' does not exist"),
        ({"grid": {"lr": [-1]}}, "row 'goft' on task 'three': --lr is -1.0; it must be above 0"),
        ({"grid": {"lr": ["high"]}}, "--lr is 'high', which is not a number"),
        ({"methods": [{"method": "lora", "grid": {"r": ["x"]}}]}, "--adapter.r is 'x', which is not an integer"),
        ({"weights": "/no/such.pt"}, "'/no/such.pt' does not exist"),
    ],
)
def test_wrong_runs_are_refused_before_any_starts(
    changes: dict[str, Any], message: str, tasks: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        schedule(sweep_values(tmp_path / "out", **{"tasks": tasks, **changes}))
    assert not (tmp_path / "out").exists()


def test_data_without_a_test_split_are_refused(three: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(three / "train")
    values = sweep_values(tmp_path / "out", tasks={"t": {"data": str(tmp_path / "data")}})
    with pytest.raises(InputError, match="has no test data for the final runs"):
        schedule(values)


def test_options_replace_keys_of_the_file(
    tasks: dict[str, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_values(tmp_path / "out", tasks=tasks)))
    assert main(["sweep", str(file), "--dry-run", "--only", "three", "--out", str(tmp_path / "other")]) == 0
    said = capsys.readouterr().out
    assert "three" in said
    assert "four" not in said
    assert "6 runs, 0 of them done" in said
    assert str(tmp_path / "other") in said
    assert main(["sweep", str(file), "--dry-run", "--weights", "/no/such.pt"]) == 2
    assert "'/no/such.pt' does not exist" in capsys.readouterr().err
