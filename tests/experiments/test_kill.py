"""A sweep killed with SIGKILL, Ray's processes with it, goes on where it was when it is started again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.tiny_sweep import ended, execute_here, schedule, start, sweep_values

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from processes import kill

pytest.importorskip("ray.tune")
pytestmark = pytest.mark.slow


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {p.parent.name: json.loads(p.read_text()) for p in out.glob("runs/*/trial.json")}


def test_a_killed_sweep_goes_on(three: Path, tmp_path: Path) -> None:
    values = sweep_values(tmp_path / "out", tasks={"three": {"data": str(three)}}, methods=["goft", "linear"])
    values["grid"] = {"lr": [1e-3, 3e-3, 1e-2]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    process = start(tmp_path / "sweep.yaml", tmp_path / "log")
    while len(records(tmp_path / "out")) < 3:
        if process.poll() is not None:
            pytest.fail(f"ended with {ended(process, tmp_path / 'log')}: {(tmp_path / 'log').read_text()}")
        time.sleep(0.05)
    kill(process)
    before = records(tmp_path / "out")
    assert 3 <= len(before) < 10

    again = start(tmp_path / "sweep.yaml", tmp_path / "log")
    assert ended(again, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    after = records(tmp_path / "out")
    assert len(after) == 10
    assert {id: after[id] for id in before} == before

    whole = schedule({**values, "out": str(tmp_path / "whole")})
    execute_here(whole)
    assert {id: r["score"] for id, r in after.items()} == {r.id: r.score for r in whole.results.values()}
