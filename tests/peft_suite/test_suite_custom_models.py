"""PEFT's ``test_custom_models.py``: an MLP, an embedding with a Conv1D, convolutions; one adapter and several.

Left out, because they test what no adapter of ours has: ``TestMixedAdapterBatches`` (LoRA), ``TestMultiRankAdapter``
(``rank_pattern``), ``TestLayerRepr`` (how LoRA's layers print), ``TestDynamicDispatch`` (layers put in LoRA's place),
and the tests that are not parametrised over methods but name one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from orthotune.tuners.bottleneck import ACTIVATIONS
from orthotune.tuners.model import AdapterModel
from peft_suite import cases, source
from peft_suite.retarget import retarget

suite = source.load("test_custom_models")

if hasattr(suite, "PREFIXES"):  # a table that PEFT kept for this module before 0.19
    suite.PREFIXES.update({config_cls: f"{config_cls().method}_" for config_cls in cases.ALL_CLASSES})

OURS: dict[str, list[Any]] = {
    "test_name, model_id, config_cls, config_kwargs": cases.CUSTOM_CASES,
    "test_name, tuner_method, config_cls, config_kwargs_1, config_kwargs_2": cases.SEVERAL_ADAPTERS,
    "config_cls": cases.CLASSES,
    "config0": [
        config_cls(target_modules=["lin0"], init_weights=False, **options)
        for config_cls, options in cases.METHODS.values()
    ],
}
LORA_ONLY = {
    "test_add_weighted_adapter_cat_with_rank_pattern": "weighs LoRA adapters, whatever the parameter says",
    "test_disable_adapter_with_bias_warns": "skips every method but LoRA and BOFT",
}

# These train with SGD at a rate that they know for PEFT's methods, whose gradients differ by orders of magnitude. For
# any method: Adam, whose steps do not depend on them, as in PEFT's test_disable_adapters_with_merging.
TRAINED_WITH_SGD = ("test_only_params_are_updated", "test_parameters_after_loading_model")

# They take for granted that a fresh adapter changes nothing.
START_AS_NO_OP = ("test_disable_adapters", "test_disable_adapters_with_merging")

TestPeftCustomModel = retarget(suite.TestPeftCustomModel, OURS, leave_out=LORA_ONLY)
TestMultipleActiveAdapters = retarget(suite.TestMultipleActiveAdapters, OURS)
TestPeftFsdpStateDict = retarget(source.newer(suite, "TestPeftFsdpStateDict", "0.21"), OURS)


@pytest.fixture(autouse=True)
def _training(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.function.__name__ in TRAINED_WITH_SGD:
        monkeypatch.setattr(torch.optim, "SGD", lambda params, lr: torch.optim.Adam(params, lr=0.01))
        # ranks go up to 2 here, the inputs are nine and positive: all of a layer's ReLUs may be dead
        monkeypatch.setitem(ACTIVATIONS, "relu", torch.nn.functional.leaky_relu)


@pytest.fixture(autouse=True)
def _starts_as_no_op(request: pytest.FixtureRequest) -> None:
    if request.function.__name__ in START_AS_NO_OP:
        params = request.node.callspec.params
        if not params["config_cls"](**params["config_kwargs"]).starts_as_no_op:
            pytest.skip("a fresh adapter with these options is not a no-op")


@pytest.mark.usefixtures("our_default_targets")
class TestDefaultTargetModules(
    retarget(source.newer(suite, "TestDefaultTargetModules", "0.21"), OURS)  # type: ignore[misc]
):
    """Default targets by model type; the tests put a model type into DeLoRA's table, for which ours stands in."""

    @pytest.fixture
    def our_default_targets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        table = "peft.tuners.delora.model.TRANSFORMERS_MODELS_TO_DELORA_TARGET_MODULES_MAPPING"
        monkeypatch.setattr(table, AdapterModel.target_module_mapping)


class TestRequiresGrad(retarget(suite.TestRequiresGrad, OURS)):  # type: ignore[misc]
    """Which parameters train; besides PEFT's tests over all methods, its test of each method, written for ours."""

    @pytest.mark.parametrize("second", ["lin0", "lin1"])
    @pytest.mark.parametrize("method", cases.METHODS)
    def test_requires_grad_two_adapters(self, method: str, second: str) -> None:
        config_cls, options = cases.METHODS[method]
        model = get_peft_model(suite.MLP(), config_cls(target_modules=["lin0"], **options))
        model.add_adapter("adapter1", config_cls(target_modules=[second], **options))

        def names(layer: str, adapter: str) -> list[str]:
            adapted = model.base_model.model.get_submodule(layer)
            stores = [f"{layer}.{store}" for store in adapted.adapter_layer_names if adapter in getattr(adapted, store)]
            assert stores
            return [f"base_model.model.{store}.{adapter}" for store in stores]

        self.check_requires_grad(model, *names("lin0", "default"))
        model.set_adapter("default")
        self.check_requires_grad(model, *names("lin0", "default"))
        model.set_adapter("adapter1")
        self.check_requires_grad(model, *names(second, "adapter1"))
        with model.disable_adapter():
            self.check_requires_grad(model)
        self.check_requires_grad(model, *names(second, "adapter1"))
