"""PEFT's own ``convert_to_lora`` and ``save_as_lora`` on our adapters: what they carry whole, and what they refuse."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from reference import relative_error
from tuners.cases import CONFIGS, LINEAR, config, model_and_input

pytestmark = pytest.mark.skipif(not hasattr(peft, "convert_to_lora"), reason="PEFT has no converter before 0.19")

SHIFTED = ("rlrr", "ssf", "bitfit", "arc", "h-adapter")  # but for shift=False
WHOLE = [name for name in LINEAR if not name.startswith(SHIFTED) or CONFIGS[name][1].get("shift") is False]
WHOLE = [n for n in WHOLE if not n.startswith(("h-adapter", "p-adapter", "ssf"))]  # not linear, and b* = g b


def adapted(case: str, kind: str, **options: Any) -> tuple[PeftModel, nn.Module, torch.Tensor]:
    model, x = model_and_input(kind)
    plain = copy.deepcopy(model)
    settings = {"target_modules": ["first", "second"], "init_weights": False, **options}
    return get_peft_model(model, config(case, **settings)).eval(), plain, x


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # its config never says True
def test_save_as_lora_at_full_rank_is_the_adapter(case: str, kind: str, tmp_path: Path) -> None:
    model, plain, x = adapted(case, kind)
    assert model.supports_lora_conversion()
    peft.save_as_lora(tmp_path, model, rank=7)
    assert relative_error(PeftModel.from_pretrained(plain, str(tmp_path))(x), model(x)) < 1e-5


def test_the_change_of_a_weight_is_the_merged_one_less_the_base() -> None:
    model, plain, _ = adapted("qgoft", "conv1d")
    layer = model.get_base_model().first
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(layer.get_delta_weight("default"), merged.first.weight - plain.first.weight)
    assert not layer.get_delta_weight("other").any()


@pytest.mark.parametrize(
    ("case", "kind", "targets"),
    [
        *((case, "linear", ["first", "second"]) for case in LINEAR if case not in WHOLE),
        ("rlrr-shift=False", "linear", ["first", "norm"]),
        ("goft", "conv2d", ["first", "second"]),
    ],
)
def test_what_it_would_drop_is_refused(case: str, kind: str, targets: list[str]) -> None:
    """Shifts of biases, norms and convolutions: ``orthotune.export_to_lora`` writes them."""
    model, _, _ = adapted(case, kind, target_modules=targets)
    assert not model.supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        peft.convert_to_lora(model, rank=2)
