"""PEFT's ``test_lora_conversion.py``, whose adapter is LoKr's, on those of ours that its converter carries.

Left out: tests of other methods, those that look for LoKr's own names or size, and bounds on LoKr's change.
"""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from orthotune import AOFTConfig, GOFTConfig, RLRRConfig
from peft_suite import source
from peft_suite.local_models import saved

pytest.importorskip("peft.tuners.lora.conversion", reason="PEFT has no converter before 0.19")
suite = source.load("test_lora_conversion")

KEPT = frozenset(
    {
        "test_fixed_rank_lora_config",
        "test_dynamic_rank_lora_config",
        "test_dynamic_rank_1_lora_config",
        "test_threshold_wrong_value_raises",
        "test_rank_higher_than_weight_dim_raises",
        "test_fixed_rank_0_raises",
        "test_with_tqdm_works",
        "test_save_as_lora",
    }
)
OURS = {
    "GOFT": GOFTConfig(init_weights=False),
    "qGOFT": GOFTConfig(quasi=True, init_weights=False),
    "RLRR no shift": RLRRConfig(shift=False, init_weights=False),
    "AOFT": AOFTConfig(r=4, init_weights=False),
}


class TestLoraConversion(suite.TestLoraConversion):  # type: ignore[misc, name-defined]
    """The fixture that PEFT's tests take their adapter from gives ours."""

    (model_id,) = saved([suite.TestLoraConversion.model_id])

    @pytest.fixture(params=OURS)
    def lokr_model(self, request: pytest.FixtureRequest) -> PeftModel:
        torch.manual_seed(0)
        return get_peft_model(self.get_base_model(), OURS[request.param])


if unknown := KEPT - set(vars(suite.TestLoraConversion)):
    raise LookupError(f"PEFT's tests have no {', '.join(sorted(unknown))}")
for name in vars(suite.TestLoraConversion):
    if name.startswith("test") and name not in KEPT:
        setattr(TestLoraConversion, name, None)
