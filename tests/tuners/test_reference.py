"""Adapted layers against the dense float64 reference: output, merged weight, every gradient."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

import reference
from orthotune.tuners.aoft import AOFTLayer
from orthotune.tuners.goft import GOFTLayer
from orthotune.tuners.layer import AdapterLayer
from tuners.cases import CONFIGS, config, method_of

DENSE = [name for name in CONFIGS if method_of(name) in ("goft", "qgoft", "rlrr", "aoft")]


def dense_layer(layer: AdapterLayer, weight: torch.Tensor, bias: torch.Tensor, leaves: dict[str, torch.Tensor]):
    """Return the adapted weight (n, D) and bias in float64, from the adapter's parameters as float64 leaves."""
    options = layer.adapter_options["default"]
    if isinstance(layer, GOFTLayer):
        blocks = leaves["goft_block"] if options.quasi else reference.rotation_blocks(leaves["goft_theta"])
        width = weight.shape[1]
        scales = {f"{options.scale[:-3]}_scale": leaves["goft_scale"]} if options.scale else {}
        if options.freeze:
            blocks = reference.held_blocks(blocks, options.freeze)
        if options.num_trees == 1:
            return reference.goft_weight(weight, blocks, scales.get("out_scale"), scales.get("in_scale")), bias
        from orthotune.ops.givens import permutation

        permute = torch.eye(width, dtype=torch.float64)[permutation(width)]
        rotation = torch.eye(width, dtype=torch.float64)
        trees = blocks.view(options.num_trees, width - 1, 2, 2)
        powers = options.permutations or range(options.num_trees)
        for tree, power, transposed in zip(trees, powers, options.transposed or [False] * len(trees), strict=True):
            change = torch.linalg.matrix_power(permute, power)
            matrix = reference.givens_matrix(tree, width)
            rotation = rotation @ change.T @ (matrix.T if transposed else matrix) @ change
        weight = weight * scales.get("in_scale", 1) @ rotation.T
        return (weight.T * scales.get("out_scale", 1)).T, bias
    if isinstance(layer, AOFTLayer):
        count, rank = options.num_updates, options.r
        scales = leaves.get("aoft_scale", torch.ones(count, rank, dtype=torch.float64)).view(count, rank)
        vectors = leaves["aoft_down"].view(count, -1), leaves["aoft_up"].view(count, -1)
        for down, up, scale in zip(*vectors, scales, strict=True):
            weight = reference.aoft_weight(weight, down, up, scale)
        if options.subtracts_start:
            starts = (init["default"].double().view(count, -1) for init in (layer.aoft_down_init, layer.aoft_up_init))
            for down, up, scale in zip(*starts, scales, strict=True):
                weight = weight - reference.aoft_weight(torch.zeros_like(weight), down, up, scale)
        return weight, bias
    left = leaves.get("rlrr_left", torch.ones(weight.shape[1], 1, dtype=torch.float64))
    right = leaves.get("rlrr_right", torch.ones(1, weight.shape[0], dtype=torch.float64))
    adapted = reference.rlrr_weight(weight, left, right, options.residual, options.multiply_base)
    return adapted, bias + leaves["rlrr_shift"] if "rlrr_shift" in leaves else bias


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", reference.WIDTHS)
@pytest.mark.parametrize("name", DENSE)
def test_output_merged_weight_and_gradients(name: str, width: int, dtype: torch.dtype) -> None:
    if width == 3072 and (CONFIGS[name][1].get("num_trees", 1) > 1 or dtype is torch.float16):
        pytest.skip("covered at the other widths; the dense reference of this one takes minutes")
    torch.manual_seed(0)
    out = max(width // 2, 3) if width < 768 else 40
    kwargs = {k: min(v, width, out) if k == "r" else v for k, v in CONFIGS[name][1].items()}
    if kwargs.get("r") == 1 and "r" in CONFIGS[name][1]:
        pytest.skip("a rank above 1 does not fit")
    base = nn.Sequential(nn.Linear(width, out)).to(dtype)
    weight, bias = base[0].weight.detach().double(), base[0].bias.detach().double()
    options = config(name, target_modules=["0"], init_weights=False, **kwargs)
    model = peft.get_peft_model(base, options, autocast_adapter_dtype=True)
    layer = model.base_model.model[0]
    if dtype is torch.float64:
        model.double()

    trained = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    leaves = {n: p.detach().double().requires_grad_() for n, p in trained.items()}
    dense_weight, dense_bias = dense_layer(
        layer, weight, bias, {n.partition(".")[0]: leaf for n, leaf in leaves.items()}
    )
    x = torch.randn(2, 4, width).to(dtype).requires_grad_()
    grad = torch.randn(2, 4, out).to(dtype)
    wide_x = x.detach().double().requires_grad_()
    want = wide_x @ dense_weight.T + dense_bias
    want.backward(grad.double())

    got = model(x)
    got.backward(grad)
    # each of several updates rounds the sum so far
    tolerance = reference.TOLERANCE[dtype] * (2 if getattr(options, "num_updates", 1) > 1 else 1)
    assert got.dtype == dtype
    assert reference.relative_error(got, want) <= tolerance
    assert reference.relative_error(x.grad, wide_x.grad) <= tolerance
    for parameter_name, parameter in trained.items():
        # sums over the layer of terms that cancel: the rounding is relative to the terms, of size sqrt(out)
        error = reference.relative_error(parameter.grad, leaves[parameter_name].grad)
        assert error <= tolerance * (5 if dtype in (torch.bfloat16, torch.float16) else 1), parameter_name

    layer.merge()
    assert layer.get_base_layer().weight.dtype == dtype
    assert reference.relative_error(layer.get_base_layer().weight, dense_weight) <= tolerance
