"""One finished run of each kind that the exports are tried on."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orthotune.training import fit
from training.tiny import config, write_digits


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of three digits, to be read only."""
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of RLRR, with norms and shifts, on a timm model."""
    out = tmp_path_factory.mktemp("runs") / "rlrr"
    fit(config(data, out, "rlrr", epochs=1, lr=0.05), quiet=True)
    return out


@pytest.fixture(scope="session")
def weights(run: Path) -> Path:
    """A file of the base weights of ``run``."""
    from orthotune.training.run import open_run

    base = open_run(run).model.module.unload()  # type: ignore[operator]
    save_file(base.state_dict(), run.parent / "base.safetensors")
    return run.parent / "base.safetensors"
