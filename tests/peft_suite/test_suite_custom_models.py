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

from orthotune import AOFTConfig, GOFTConfig, RLRRConfig
from orthotune.tuners.model import AdapterModel
from peft_suite import cases, source
from peft_suite.retarget import retarget

suite = source.load("test_custom_models")

if hasattr(suite, "PREFIXES"):  # a table that PEFT kept for this module before 0.19
    suite.PREFIXES.update({config_cls: f"{config_cls().method}_" for config_cls in cases.CLASSES})

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

# Two training tests take their learning rate from the class of the configuration, 0.5 for a class they do not list.
# RLRR multiplies the weight, so its gradients are as small as the weight: it takes what HiRA does, another such method.
# The second test's loss has no lower bound, and methods that run off to infinity take 0.01 (RandLoRA, OSF): so do
# qGOFT and AOFT.
LEARNING_RATES: dict[str, tuple[tuple[type, ...], float]] = {
    "test_only_params_are_updated": ((RLRRConfig,), 100),
    "test_parameters_after_loading_model": ((GOFTConfig, AOFTConfig), 0.01),
}

TestPeftCustomModel = retarget(suite.TestPeftCustomModel, OURS, leave_out=LORA_ONLY)
TestMultipleActiveAdapters = retarget(suite.TestMultipleActiveAdapters, OURS)
TestPeftFsdpStateDict = retarget(source.newer(suite, "TestPeftFsdpStateDict", "0.21"), OURS)


@pytest.fixture(autouse=True)
def _learning_rate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    classes, rate = LEARNING_RATES.get(request.function.__name__, ((), 0.0))
    if classes and issubclass(request.node.callspec.params["config_cls"], classes):
        sgd = torch.optim.SGD
        monkeypatch.setattr(torch.optim, "SGD", lambda params, lr: sgd(params, lr=rate))


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
