"""Adapted quantised layers against the dense float64 reference over the dequantised weight: output, every gradient."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch
from torch import nn

import reference
from quantised.kinds import CONFIGS, IN, KINDS, OUT, config, quantised
from tuners.test_reference import dense_layer


def adapted(layer: nn.Module, name: str, **options: Any) -> Any:
    """A model of one quantised layer with an adapter that does something."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RLRR: .* have no bias")
        return peft.get_peft_model(
            nn.Sequential(layer), config(name, target_modules=["0"], init_weights=False, **options)
        )


#: one of each way to compute; the others differ in parameters alone
METHODS = ["goft", "qgoft-output-scale", "rlrr-r3", "rlrr-without-w", "aoft"]
CASES = [(name, kind, torch.float32) for name in CONFIGS for kind in KINDS]
CASES += [(name, kind, torch.bfloat16) for name in METHODS for kind in KINDS]


@pytest.mark.parametrize(("name", "kind", "dtype"), CASES)
def test_output_and_gradients(name: str, kind: str, dtype: torch.dtype) -> None:
    base, weight, bias = quantised(kind, dtype)
    model = adapted(base, name)
    layer = model.base_model.model[0]
    trained = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    leaves = {n: p.detach().double().requires_grad_() for n, p in trained.items()}
    dense, dense_bias = dense_layer(layer, weight, bias, {n.partition(".")[0]: leaf for n, leaf in leaves.items()})
    x = torch.randn(2, 5, IN).to(dtype).requires_grad_()
    grad = torch.randn(2, 5, OUT).to(dtype)
    wide_x = x.detach().double().requires_grad_()
    want = wide_x @ dense.T + dense_bias
    want.backward(grad.double())

    got = model.train()(x)
    got.backward(grad)
    tolerance = reference.TOLERANCE[dtype]
    assert got.dtype == dtype
    assert reference.relative_error(got, want) <= tolerance
    assert reference.relative_error(x.grad, wide_x.grad) <= tolerance
    assert not any(p.grad is not None for p in layer.get_base_layer().parameters())
    for parameter_name, parameter in trained.items():
        error = reference.relative_error(parameter.grad, leaves[parameter_name].grad)
        assert error <= tolerance * (5 if dtype is torch.bfloat16 else 1), parameter_name


# an 8-bit layer of bitsandbytes also rounds the activations to 8 bits in evaluation: half a step of 127 in each of
# 192 products, most of which cancels
EVALUATION = {"bnb-8bit": 2e-2, "bnb-8bit-outliers": 2e-2}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_evaluation_without_gradients(name: str, kind: str, bias: bool) -> None:
    base, weight, dense_bias = quantised(kind, bias=bias)
    model = adapted(base, name).eval()
    layer = model.base_model.model[0]
    leaves = {n.partition(".")[0]: p.detach().double() for n, p in layer.named_parameters() if p.requires_grad}
    dense, dense_bias = dense_layer(layer, weight, torch.zeros(OUT) if dense_bias is None else dense_bias, leaves)
    x = torch.randn(2, 5, IN)
    with torch.no_grad():
        got = model(x)
    assert reference.relative_error(got, x.double() @ dense.T + dense_bias) <= EVALUATION.get(kind, 1e-5)
    assert layer._merged_weight.empty


@pytest.mark.parametrize("kind", ["bnb-8bit", "bnb-nf4", "torchao-int8", "gptq"])
@pytest.mark.parametrize("names", [("goft-output-scale", "goft"), ("rlrr-r3", "rlrr"), ("aoft", "aoft-no-scale")])
def test_several_adapters_act_as_on_the_dense_layer(names: tuple[str, str], kind: str) -> None:
    base, weight, bias = quantised(kind)
    plain = nn.Linear(IN, OUT).double()
    plain.load_state_dict({"weight": weight, "bias": bias})
    models = [adapted(layer, names[0]) for layer in (base, plain)]
    for model in models:
        model.add_adapter("second", config(names[1], target_modules=["0"], init_weights=False))
        model.base_model.set_adapter(["default", "second"])
    models[1].double()
    layers = [model.base_model.model[0] for model in models]
    for (name, value), (other, source) in zip(*(_adapter_tensors(layer) for layer in reversed(layers)), strict=True):
        assert name == other
        value.data.copy_(source)
    x = torch.randn(2, 5, IN)
    outputs = [models[0].train()(x), models[1].train()(x.double())]
    for output in outputs:
        output.square().sum().backward()
    assert reference.relative_error(*outputs) <= 1e-5
    for (name, value), (_, other) in zip(*map(_adapter_tensors, layers), strict=True):
        if value.requires_grad:
            assert reference.relative_error(value.grad, other.grad) <= 1e-5, name


def _adapter_tensors(layer: Any) -> list[tuple[str, torch.Tensor]]:
    tensors = (*layer.named_parameters(), *layer.named_buffers())
    return [(name, value) for name, value in tensors if "base_layer" not in name]
