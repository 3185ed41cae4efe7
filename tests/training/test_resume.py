"""A run killed with SIGKILL and resumed is the uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orthotune.errors import InputError
from orthotune.training import Metrics, fit
from training.kill import resumable
from training.tiny import config, write_digits

MOMENTS = ["first-epoch", "mid-epoch", "mid-save", "mid-result"]


@pytest.fixture(scope="module")
def killed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one killed run per moment."""
    out = tmp_path_factory.mktemp("killed")
    tests = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path]), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(tests / "training" / "kill.py"), str(digits), str(out), *MOMENTS]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [word for m in MOMENTS for word in (m, str(int(signal.SIGKILL)))]
    return out


@pytest.fixture(scope="module")
def uninterrupted(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metrics]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, fit(resumable(digits, out), quiet=True)


def timeless(metrics: Metrics) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in metrics.curve]


@pytest.mark.parametrize("moment", MOMENTS)
def test_resumed_run_equals_the_uninterrupted_one(
    moment: str, killed: Path, uninterrupted: tuple[Path, Metrics], digits: Path
) -> None:
    run = killed / moment
    assert not (run / "metrics.json").exists()
    assert (run / "checkpoint.pt").exists() == (moment != "first-epoch")
    metrics = fit(resumable(digits, run), resume=True, quiet=True)
    whole, expected = uninterrupted
    assert timeless(metrics) == timeless(expected)
    assert metrics.test == expected.test
    assert metrics.best == expected.best
    ours, theirs = (load_file(r / "adapter" / "adapter_model.safetensors") for r in (run, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}


def test_resuming_a_finished_run_returns_its_result(uninterrupted: tuple[Path, Metrics], digits: Path) -> None:
    run, expected = uninterrupted
    before = (run / "metrics.json").stat().st_mtime_ns
    assert fit(resumable(digits, run), resume=True, quiet=True).test == expected.test
    assert (run / "metrics.json").stat().st_mtime_ns == before


def test_other_settings_are_named(uninterrupted: tuple[Path, Metrics], digits: Path) -> None:
    changed = resumable(digits, uninterrupted[0])
    lr, changed.lr, changed.seed = changed.lr, 0.5, 3
    with pytest.raises(InputError, match=rf"--lr \(0\.5, was {lr}\).*--seed \(3, was 0\)"):
        fit(changed, resume=True, quiet=True)


def test_other_images_are_refused(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data")
    from orthotune.training.fitting import FitRun
    from orthotune.training.run import RunFolder

    settings = config(data, tmp_path / "run", "linear", epochs=2)
    run = FitRun(settings, RunFolder(tmp_path / "run"), continues=False)
    run._epoch(0)
    next((data / "train" / "digit1").iterdir()).unlink()
    with pytest.raises(InputError, match="have changed"):
        fit(settings, resume=True, quiet=True)


def test_overwrite_replaces_and_nothing_else_does(digits: Path, tmp_path: Path) -> None:
    settings = config(digits, tmp_path / "run", "linear", epochs=1)
    fit(settings, quiet=True)
    with pytest.raises(InputError, match="already holds a run: add --resume or --overwrite"):
        fit(settings, quiet=True)
    settings.lr = 1.0
    fit(settings, overwrite=True, quiet=True)
    assert Metrics.load(tmp_path / "run" / "metrics.json").config["lr"] == 1.0
