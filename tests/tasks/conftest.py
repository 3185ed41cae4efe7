"""Models and data for runs on texts."""

from pathlib import Path

import pytest
import torch

from orthotune.texts.alpaca import PROMPT
from tasks.tiny_text import BAD, GOOD, bert, llama, write_reviews


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small BERT."""
    return bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Llama without a padding token."""
    return llama(tmp_path_factory.mktemp("models") / "llama", [PROMPT, *GOOD, *BAD])


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``--data`` of a small SST-2."""
    return f"glue:{write_reviews(tmp_path_factory.mktemp('glue'))}"
