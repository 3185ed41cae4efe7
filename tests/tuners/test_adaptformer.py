"""AdaptFormer against its formula written out, its count, which modules it wraps, and its errors."""

from __future__ import annotations

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.tuners.adaptformer import AdaptFormerConfig
from tuners.transformers_and_timm import DEPTH, MODELS, WIDTH, images, logits, timm_vit, wraps

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "none": lambda x: x}


class Beside(nn.Module):
    """FFN(h) + s act(h W_down + b_down) W_up + b_up, s over the whole branch."""

    def __init__(self, module: nn.Module, weights: list[Tensor], scale: float, activation: str) -> None:
        super().__init__()
        self.module, self.weights = module, weights
        self.scale, self.activation = scale, ACTIVATIONS[activation]

    def forward(self, h: Tensor) -> Tensor:
        down, down_bias, up, up_bias = self.weights
        return self.module(h) + self.scale * (self.activation(h @ down.T + down_bias) @ up.T + up_bias)


def feed_forwards(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith(".mlp")]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", [model for model in MODELS if wraps("adaptformer", model)])
def test_same_as_the_formula(name: str, activation: str) -> None:
    x = images(dtype=torch.float64)
    config = AdaptFormerConfig(r=3, scale=0.7, activation=activation, init_weights=False)
    model = peft.get_peft_model(MODELS[name]().double(), config).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 4 * DEPTH
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.3 * torch.randn_like(parameter))
    got = logits(model, x)

    plain = MODELS[name]().double()
    own = [p.detach().clone().requires_grad_() for p in trained]
    for i, target in enumerate(feed_forwards(plain)):
        beside = Beside(plain.get_submodule(target), own[4 * i : 4 * i + 4], 0.7, activation)
        plain.get_submodule(target.rpartition(".")[0]).mlp = beside
    want = logits(plain, x)
    assert torch.allclose(got, want, atol=1e-12, rtol=0)
    got_grads = torch.autograd.grad(got.square().sum(), trained)
    for a, b in zip(got_grads, torch.autograd.grad(want.square().sum(), own), strict=True):
        assert torch.allclose(a, b, atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", [model for model in MODELS if wraps("adaptformer", model)])
def test_default_start_is_a_no_op(name: str) -> None:
    base, x = MODELS[name](), images()
    want = logits(base, x)
    model = peft.get_peft_model(base, AdaptFormerConfig()).eval()
    assert torch.equal(logits(model, x), want)
    logits(model, x).square().sum().backward()
    up = [p for n, p in model.named_parameters() if "adaptformer_up." in n]
    assert len(up) == DEPTH
    assert all(p.grad.abs().sum() > 0 for p in up)  # and it can leave the start


def test_count_on_vit_base() -> None:
    """12 (2 * 768 * 8 + 8 + 768): the 0.16 M of the VTAB-1k tables, but for the head."""
    with torch.device("meta"):
        model = peft.get_peft_model(VisionTransformer(num_classes=0), AdaptFormerConfig())
    assert model.get_nb_trainable_parameters()[0] == 156_768


def test_dropout_in_training_only() -> None:
    model = peft.get_peft_model(timm_vit(), AdaptFormerConfig(dropout=0.5, init_weights=False))
    x = images()
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("options", "wrapped"),
    [
        ({}, [0, 1, 2]),
        ({"target_modules": ["mlp"]}, [0, 1, 2]),
        ({"layers_to_transform": [0, 2]}, [0, 2]),
        ({"target_modules": ["mlp"], "layers_to_transform": 1}, [1]),
        ({"target_modules": r"blocks\.[01]\.mlp"}, [0, 1]),
    ],
)
def test_which_modules_are_wrapped(options: dict, wrapped: list[int]) -> None:
    model = peft.get_peft_model(timm_vit(), AdaptFormerConfig(r=2, **options))
    names = [n for n, m in model.base_model.model.named_modules() if hasattr(m, "base_layer")]
    assert names == [f"blocks.{i}.mlp" for i in wrapped]


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize(
    "make",
    [
        lambda: transformers.LlamaModel(transformers.LlamaConfig(vocab_size=20, **SIZES)),
        lambda: transformers.GPT2Model(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20)),
    ],
    ids=["Llama", "GPT2"],
)
def test_language_models(make) -> None:
    base = make().eval()
    tokens = torch.arange(6)[None]
    want = base(tokens).last_hidden_state
    model = peft.get_peft_model(base, AdaptFormerConfig(r=4, init_weights=False)).eval()
    assert not torch.allclose(model(tokens).last_hidden_state, want, atol=1e-4)
    assert model.get_nb_trainable_parameters()[0] == 2 * (2 * 16 * 4 + 4 + 16)


def test_a_feed_forward_network_in_two_modules_is_refused() -> None:
    model = transformers.BertModel(transformers.BertConfig(vocab_size=20, **SIZES))
    with pytest.raises(InputError, match=r"no block with a module named .*attention, intermediate, output"):
        peft.get_peft_model(model, AdaptFormerConfig())
    for half in ("intermediate", r"encoder\.layer\.\d+\.output"):
        with pytest.raises(InputError, match=r"layer 'encoder\.layer\.0\.\w+' .* is not a whole feed-forward network"):
            peft.get_peft_model(model, AdaptFormerConfig(target_modules=half if "\\" in half else [half]))


@pytest.mark.parametrize("target", ["blocks.0.mlp.fc1", "blocks.0.norm1"])
def test_what_is_no_feed_forward_network_is_refused(target: str) -> None:
    with pytest.raises(InputError, match=f"layer '{target}' .* is not a whole feed-forward network"):
        peft.get_peft_model(timm_vit(), AdaptFormerConfig(target_modules=[target]))


def test_a_module_that_returns_something_else_is_named() -> None:
    model = timm_vit()
    model.blocks[1].mlp.forward = lambda x: (x, None)
    model = peft.get_peft_model(model, AdaptFormerConfig())
    with pytest.raises(InputError, match=r"layer 'blocks\.1\.mlp' does not return one tensor"):
        model(images())


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="no transformer blocks were found"):
        peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), AdaptFormerConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r=0 is out of range"),
        ({"scale": 0.0}, r"scale=0\.0 is out of range: it is a finite number above 0"),
        ({"scale": float("inf")}, "scale=inf is out of range"),
        ({"scale": "learnable"}, "scale='learnable' is out of range"),
        ({"activation": "rellu"}, "did you mean 'relu'"),
        ({"init_weights": "paper"}, "init_weights='paper'"),
    ],
)
def test_bad_fields(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaptFormerConfig(**options)


def test_a_bottleneck_wider_than_the_model() -> None:
    with pytest.raises(InputError, match=rf"r={WIDTH + 1} is out of range for layer 'blocks\.0\.mlp'"):
        peft.get_peft_model(timm_vit(), AdaptFormerConfig(r=WIDTH + 1))
