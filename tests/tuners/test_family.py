"""The methods that ours are compared with, against the papers' formulas written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import reference
from orthotune.methods import METHODS
from orthotune.models import adapt
from orthotune.models.build import empty_classifier, parameter_counts
from tuners.cases import config

ACTIVATIONS = {"relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu, "none": lambda z: z}


def ssf(x: Tensor, weight: Tensor, bias: Tensor, p: Callable[[str], Tensor], options: Any) -> Tensor:
    return (x @ weight + bias) * p("ssf_scale") + (p("ssf_shift") if options.shift else 0)


def bitfit(x: Tensor, weight: Tensor, bias: Tensor, p: Callable[[str], Tensor], options: Any) -> Tensor:
    return x @ weight + bias + p("bitfit_shift")


def arc(x: Tensor, weight: Tensor, bias: Tensor, p: Callable[[str], Tensor], options: Any) -> Tensor:
    projection = p("arc_projection")
    x = x + x @ projection @ torch.diag(p("arc_coefficient")) @ projection.T
    return (x + p("arc_shift") if options.shift else x) @ weight + bias


def fact(x: Tensor, weight: Tensor, bias: Tensor, p: Callable[[str], Tensor], options: Any) -> Tensor:
    core = p("fact_core")
    if options.decomposition == "tk":
        core = torch.stack([sum(t * p("fact_tensor")[:, :, i] for i, t in enumerate(row)) for row in core])
    blocks = [options.scale * p("fact_u") @ block @ p("fact_v").T for block in core]
    return x @ (weight + torch.cat(blocks, dim=1 if weight.shape[1] >= weight.shape[0] else 0)) + bias


def bottleneck(x: Tensor, weight: Tensor, bias: Tensor, p: Callable[[str], Tensor], options: Any) -> Tensor:
    h, act = x @ weight + bias, ACTIVATIONS[options.activation]
    if options.projection == "dense":
        down, up = p("bottleneck_down").T, p("bottleneck_up").T
        inner = h @ down + (p("bottleneck_down_bias") if options.shift else 0)
    else:
        down, up = (reference.approx_orthogonal_matrix(p(f"bottleneck_{n}"))[:, : options.r] for n in ("down", "up"))
        inner, up = h @ (down * p("bottleneck_scale") if options.learn_scale else down), up.T
    return h + act(inner) @ up + (p("bottleneck_up_bias") if options.shift else 0)


CASES: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = [
    ("ssf", ssf, {}),
    ("ssf", ssf, {"shift": False}),
    ("bitfit", bitfit, {}),
    ("arc", arc, {"r": 4}),
    ("arc", arc, {"r": 11, "shift": False}),
    ("fact-tt", fact, {"r": 3, "scale": 0.5}),
    ("fact-tk", fact, {"r": 3, "scale": 2.0}),
    *(("h-adapter", bottleneck, {"r": 3, "activation": act}) for act in ACTIVATIONS),
    ("h-adapter", bottleneck, {"r": 1, "shift": False}),
    *(("h-adapter-aoft", bottleneck, {"r": 3, "activation": act}) for act in ACTIVATIONS),
    ("h-adapter-aoft", bottleneck, {"r": 1, "learn_scale": False, "shift": False}),
]


@pytest.mark.parametrize("shape", [(7, 21), (21, 7), (6, 10), (5, 5)], ids=str)
@pytest.mark.parametrize(("name", "formula", "options"), CASES)
def test_output_and_gradients(
    name: str, formula: Callable[..., Tensor], options: dict[str, Any], shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(*shape)).double()
    weight, bias = base[0].weight.detach().T, base[0].bias.detach()
    settings = config(name, **options, target_modules=["0"], init_weights=False)
    model = peft.get_peft_model(base, settings).double()
    parameters = {n.split(".")[-2]: p for n, p in model.named_parameters() if p.requires_grad}
    x = torch.randn(2, 4, shape[0], dtype=torch.float64, requires_grad=True)
    want = formula(x, weight, bias, parameters.__getitem__, settings)
    leaves = [x, *parameters.values()]
    want_grads = torch.autograd.grad(want.square().sum(), leaves)
    got = model(x)
    assert torch.allclose(got, want, atol=1e-12)
    for grad, wanted in zip(torch.autograd.grad(got.square().sum(), leaves), want_grads, strict=True):
        assert torch.allclose(grad, wanted, atol=1e-10)


class Block(nn.Module):
    """Queries, keys and values of one input, and a layer of another."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.fc1 = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc1(self.query(x) + self.key(x) * self.value(x))


def shared(model: nn.Module, name: str) -> list[str]:
    return [n for n, _ in model.named_parameters() if f".{name}." in n]


def test_arc_shares_the_projection_and_a_block_its_coefficients() -> None:
    targets = ["query", "key", "value", "fc1"]
    model = peft.get_peft_model(nn.Sequential(Block(), Block()), config("arc", target_modules=targets))
    prefix = "base_model.model"
    assert shared(model, "arc_projection") == [f"{prefix}.0.{n}.arc_projection.default" for n in ("query", "fc1")]
    assert len(shared(model, "arc_coefficient")) == len(shared(model, "arc_shift")) == 4
    model.delete_adapter("default")
    model.add_adapter("default", config("arc", target_modules=["1.key", "1.value"]))
    model.set_adapter("default")
    assert shared(model, "arc_projection") == [f"{prefix}.1.key.arc_projection.default"]
    model(torch.randn(2, 6)).sum().backward()


@pytest.mark.parametrize("name", ["fact-tt", "fact-tk"])
def test_fact_shares_its_factors_between_layers_and_follows_them_in_evaluation(name: str) -> None:
    layers = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 600), nn.Linear(600, 300))
    model = peft.get_peft_model(layers, config(name, target_modules=["0", "1", "2"], init_weights=False)).eval()
    (held,) = shared(model, "fact_u")
    assert held.startswith("base_model.model.0.")
    x = torch.randn(3, 300)
    with torch.no_grad():
        before = model(x)
        assert torch.allclose(before, model.train()(x), atol=1e-5)
        model.eval().get_parameter(held).mul_(2)
        after = model(x)
        assert torch.allclose(after, model.train()(x), atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)


# ViT-B/16: 12 blocks, D = 768
COUNTS = {
    "ssf": 2 * (12 * (3 * 768 + 768 + 4 * 768 + 768 + 2 * 768) + 2 * 768),
    "bitfit": 12 * (3 * 768 + 768 + 4 * 768 + 768 + 2 * 768) + 2 * 768,
    "arc": 2 * (768 * 50 + (50 + 768) * 12),
    "fact-tt": 2 * 768 * 16 + 12 * 12 * 16 * 16,
    "fact-tk": 2 * 768 * 32 + 12 * 12 * 32 + 32**3,
    "h-adapter": 24 * (2 * 768 * 8 + 8 + 768),
    "h-adapter-aoft": 24 * (3 * 768 + 8),
    "p-adapter": 12 * (2 * 768 * 16 + 16 + 768),
    "partial": 12 * 768 * 768 + (9 + 4 + 2) * 768 - 2 * 768 + 2 * 768,
    "full": 85_798_656,  # timm's vit_base_patch16_224 without its head
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_on_vit_b16(name: str) -> None:
    classifier = empty_classifier("vit_base_patch16_224", 10)
    counts = parameter_counts(adapt(classifier, name, {}).module, classifier.head)
    assert counts["adapter"] == COUNTS[name]
    assert counts["head"] == 7690


def test_mlp_head() -> None:
    classifier = empty_classifier("vit_tiny_patch16_224", 10)
    counts = parameter_counts(adapt(classifier, "mlp-head", {"layers": 2}).module, classifier.head)
    assert counts["adapter"] == 0
    assert counts["head"] == 2 * (192 * 192 + 192) + 1930


def test_every_method_has_a_summary_of_one_line() -> None:
    assert all(method.summary and "\n" not in method.summary for method in METHODS.values())
