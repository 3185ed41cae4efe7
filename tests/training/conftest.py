"""Fixtures for whole runs."""

from pathlib import Path

import pytest
import torch

from training.tiny import write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of three digits, to be read only."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
