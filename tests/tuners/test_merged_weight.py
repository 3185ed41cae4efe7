"""In evaluation an unmerged adapter's weight is made once, and made anew when anything it depends on changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict
from torch import nn

from orthotune import AOFTConfig, GOFTConfig, RLRRConfig
from orthotune.ops import plan
from orthotune.tuners.layer import AdapterLayer

CONFIGS = {
    "goft": lambda: GOFTConfig(target_modules=["0"], init_weights=False),
    "qgoft": lambda: GOFTConfig(target_modules=["0"], init_weights=False, quasi=True, scale="output"),
    "rlrr": lambda: RLRRConfig(target_modules=["0"], init_weights=False),
    "aoft": lambda: AOFTConfig(target_modules=["0"], init_weights=False, r=4),
    "aoft_fixed": lambda: AOFTConfig(target_modules=["0"], init_weights=False, r=4, learn_scale=False),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(plan, "TINY", 0)
    torch.manual_seed(0)
    return get_peft_model(nn.Sequential(nn.Linear(20, 12)), CONFIGS[request.param]()).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 20)


def layer_of(model: nn.Module) -> AdapterLayer:
    return next(m for m in model.modules() if isinstance(m, AdapterLayer))


def parameter_of(model: nn.Module) -> nn.Parameter:
    return next(p for p in model.parameters() if p.requires_grad)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count how often an adapted weight is made."""
    made = []
    plain = AdapterLayer.adapted_weight

    def counted(self: AdapterLayer, adapters: list[str]) -> object:
        made.append(adapters)
        return plain(self, adapters)

    monkeypatch.setattr(AdapterLayer, "adapted_weight", counted)
    return lambda: len(made)


def check(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Evaluate without gradients, and compare with the path that has them and keeps nothing."""
    with torch.no_grad():
        got = model(x)
    assert torch.allclose(got, model(x), atol=1e-5)
    return got


def test_made_once(model: nn.Module, x: torch.Tensor, count: Callable[[], int]) -> None:
    with torch.no_grad():
        first, second = model(x), model(x[:1])
    assert count() == 1
    assert torch.allclose(first[:1], second, atol=1e-6)
    check(model, x)


def edit_in_place(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.add_(0.1)


def edit_data(parameter: nn.Parameter) -> None:
    parameter.data.add_(0.1)


def replace_data(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data + 0.1


@pytest.mark.parametrize("edit", [edit_in_place, edit_data, replace_data])
def test_an_edited_adapter_is_seen(model: nn.Module, x: torch.Tensor, edit: Callable[[nn.Parameter], None]) -> None:
    before = check(model, x)
    edit(parameter_of(model))
    assert not torch.allclose(before, check(model, x), atol=1e-4)


@pytest.mark.parametrize("edit", [edit_in_place, replace_data])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_an_edited_base_layer_is_seen(
    model: nn.Module, x: torch.Tensor, name: str, edit: Callable[[nn.Parameter], None]
) -> None:
    before = check(model, x)
    edit(getattr(layer_of(model).base_layer, name))
    assert not torch.allclose(before, check(model, x), atol=1e-4)


def test_a_training_step_is_seen(model: nn.Module, x: torch.Tensor) -> None:
    before = check(model, x)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(x).square().sum().backward()  # still in evaluation mode
    optimiser.step()
    assert not torch.allclose(before, check(model, x), atol=1e-4)


def test_a_loaded_adapter_is_seen(model: nn.Module, x: torch.Tensor) -> None:
    before = check(model, x)
    state = {k: v + 0.1 for k, v in model.state_dict().items() if "default" in k}
    set_peft_model_state_dict(model, {k.replace(".default", ""): v for k, v in state.items()})
    assert not torch.allclose(before, check(model, x), atol=1e-4)


def test_the_active_adapter_counts(model: nn.Module, x: torch.Tensor) -> None:
    first = check(model, x)
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    model.eval()
    second = check(model, x)
    assert not torch.allclose(first, second, atol=1e-4)
    model.set_adapter("default")
    assert torch.allclose(check(model, x), first)
    with model.disable_adapter():
        assert torch.equal(check(model, x), layer_of(model).base_layer(x))
    model.merge_adapter()
    assert torch.allclose(check(model, x), first, atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(check(model, x), first)


def test_training_gives_the_memory_back(model: nn.Module, x: torch.Tensor) -> None:
    check(model, x)
    kept = layer_of(model)._merged_weight
    assert not kept.empty
    model.eval()
    assert not kept.empty
    model.train()
    assert kept.empty


def test_nothing_is_kept_with_gradients_or_in_training(model: nn.Module, x: torch.Tensor) -> None:
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
    assert layer_of(model)._merged_weight.empty


def test_nothing_is_kept_without_room(model: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available, total = 26 * 4, 100 * 4  # float32 numbers

    monkeypatch.setattr("orthotune.ops.plan.psutil.virtual_memory", lambda: Memory)
    check(model, x)
    assert layer_of(model)._merged_weight.empty


def test_a_tiny_weight_is_not_kept(model: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TINY", 20 * 12 + 1)
    check(model, x)
    assert layer_of(model)._merged_weight.empty


def test_a_hook_on_the_base_layer_is_called(model: nn.Module, x: torch.Tensor) -> None:
    called = []
    layer_of(model).base_layer.register_forward_hook(lambda *args: called.append(args))
    check(model, x)
    assert called
    assert layer_of(model)._merged_weight.empty


def test_copies_and_pickles_leave_it_behind(model: nn.Module, x: torch.Tensor) -> None:
    want = check(model, x)
    before = set(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert layer_of(twin)._merged_weight.empty
        assert torch.allclose(check(twin, x), want)
        assert set(twin.state_dict()) == before


def test_inference_mode(model: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        got, again = model(x), model(x)
    assert torch.equal(got, again)
    assert torch.allclose(got, check(model, x), atol=1e-5)
