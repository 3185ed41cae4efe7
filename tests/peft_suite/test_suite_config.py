"""PEFT's ``test_config.py``: saving, loading, copying and checking configurations.

Left out: tests that are not parametrised over methods but name one. ``test_from_peft_type`` is kept: it goes through
every method that PEFT knows of, which ours are part of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from peft_suite import cases, source
from peft_suite.retarget import retarget

suite = source.load("test_config")

OURS: dict[str, list[Any]] = {
    "config_class, mandatory_kwargs": [(config_cls, {}) for config_cls in cases.ALL_CLASSES],
    "config_class": cases.ALL_CLASSES,
}


@pytest.mark.usefixtures("local_checkpoint")
class TestPeftConfig(retarget(suite.TestPeftConfig, OURS, also=["test_from_peft_type"])):  # type: ignore[misc]
    """The tests read a LoRA checkpoint of the Hub; a local one stands in for it."""

    @pytest.fixture
    def local_checkpoint(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        LoraConfig(target_modules=["q_proj"]).save_pretrained(tmp_path / "lora")
        monkeypatch.setattr(suite, "PEFT_MODELS_TO_TEST", [(str(tmp_path / "lora"), "main")])
