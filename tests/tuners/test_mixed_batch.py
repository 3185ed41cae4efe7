"""Several adapters in one batch, one for each sample."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn

from orthotune.errors import InputError
from tuners import cases

NAMES = ["second", "__base__", "first", "second", "first"]


def two_adapters(name: str, base: nn.Module, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    config = cases.config(name, init_weights=False, **kwargs)
    model = get_peft_model(base, config, adapter_name="first")
    model.add_adapter("second", cases.config(name, init_weights=False, **kwargs))
    return model.eval()


def one_by_one(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    rows = []
    for name, row in zip(NAMES, x, strict=True):
        if name == "__base__":
            with model.disable_adapter():
                rows.append(model(row[None]))
        else:
            model.set_adapter(name)
            rows.append(model(row[None]))
    return torch.cat(rows)


@pytest.mark.parametrize("name", cases.LINEAR)
def test_each_sample_sees_its_own_adapter(name: str) -> None:
    model = two_adapters(name, cases.Linears(), target_modules=["first", "second"])
    x = torch.randn(5, 10)
    want = one_by_one(model, x)
    assert torch.allclose(model(x, adapter_names=NAMES), want, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(model(x, adapter_names=NAMES), want, atol=1e-5)
    assert not torch.allclose(want, model(x), atol=1e-4)  # and nothing of it stays behind


@pytest.mark.parametrize("name", ["goft", "rlrr", "aoft"])
def test_convolutions(name: str) -> None:
    model = two_adapters(name, cases.Convs(), target_modules=["first", "second"])
    x = torch.randn(5, 3, 9, 9)
    assert torch.allclose(model(x, adapter_names=NAMES), one_by_one(model, x), atol=1e-5)


def test_a_head_trained_beside_the_adapter_is_chosen_by_sample() -> None:
    model = two_adapters("goft", cases.Linears(), target_modules=["first"], modules_to_save=["head"])
    for adapter, head in model.base_model.model.head.modules_to_save.items():
        nn.init.normal_(head.weight, std=1.0 if adapter == "first" else 2.0)
    x = torch.randn(5, 10)
    assert torch.allclose(model(x, adapter_names=NAMES), one_by_one(model, x), atol=1e-5)


def test_bad_requests_are_named() -> None:
    model = two_adapters("goft", cases.Linears(), target_modules=["first"])
    x = torch.randn(5, 10)
    with pytest.raises(InputError, match="has third, which the model has not: __base__, first, second"):
        model(x, adapter_names=["third"] * 5)
    with pytest.raises(InputError, match="2 names for a batch of 5 samples"):
        model(x, adapter_names=["first", "second"])
    with pytest.raises(InputError, match="num_beams=3"):
        model(x, adapter_names=NAMES, num_beams=3)
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        model.train()(x, adapter_names=NAMES)
    model.eval().merge_adapter()
    with pytest.raises(InputError, match="unmerge_adapter"):
        model(x, adapter_names=NAMES)
