"""Visual prompts against a forward pass written out, their counts, where they may go, and their errors."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.tuners.vpt import VPTConfig
from reference import approx_orthogonal_matrix
from tuners.transformers_and_timm import DEPTH, MODELS, WIDTH, images, logits, timm_vit, transformers_vit

TOKENS = 3
PROJECTIONS = ("dense", "approx_orthogonal")


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def by_hand(blocks: list[nn.Module], x: Tensor, prompts: list[Tensor]) -> Tensor:
    """The published order: prompts after the class token, other ones for each block (deep), or one set for all."""
    count = len(prompts[0])
    for i, block in enumerate(blocks):
        if i < len(prompts):
            rows = prompts[i].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], rows, x[:, 1:] if i == 0 else x[:, 1 + count :]], dim=1)
        x = first(block(x))
    return torch.cat([x[:, :1], x[:, 1 + count :]], dim=1)


def prompted(name: str, model: nn.Module, x: Tensor, prompts: list[Tensor]) -> Tensor:
    """The logits of an unadapted model with prompts put in by hand."""
    if name == "timm":
        tokens = model._pos_embed(model.patch_embed(x))
        return model.forward_head(model.norm(by_hand(list(model.blocks), tokens, prompts)))
    vit = model.vit
    blocks = vit.layers if hasattr(vit, "layers") else vit.encoder.layer
    return model.classifier(vit.layernorm(by_hand(list(blocks), vit.embeddings(x), prompts))[:, 0])


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_same_as_prompts_put_in_by_hand_after_the_class_token(name: str, deep: bool, projection: str) -> None:
    x = images(dtype=torch.float64)
    config = VPTConfig(num_tokens=TOKENS, deep=deep, projection=projection)
    model = peft.get_peft_model(MODELS[name]().double(), config).eval()
    got = logits(model, x)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == (DEPTH if deep else 1)
    got_grads = torch.autograd.grad(got.square().sum(), trained)

    own = [p.detach().clone().requires_grad_() for p in trained]
    prompts = own
    if projection == "approx_orthogonal":
        prompts = [approx_orthogonal_matrix(q)[:, :TOKENS].T for q in own]
    want = prompted(name, MODELS[name]().double(), x, prompts)
    assert torch.allclose(got, want, atol=1e-12, rtol=0)
    for a, b in zip(got_grads, torch.autograd.grad(want.square().sum(), own), strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 12 * 50 * 768),
        ({"deep": False, "num_tokens": 100}, 100 * 768),
        ({"projection": "approx_orthogonal"}, 12 * 768),
        ({"projection": "approx_orthogonal", "deep": False}, 768),
    ],
)
def test_counts_on_vit_base(options: dict, count: int) -> None:
    with torch.device("meta"):
        model = peft.get_peft_model(VisionTransformer(num_classes=0), VPTConfig(**options))
    assert model.get_nb_trainable_parameters()[0] == count


def test_start_has_the_scale_of_a_patch_embedding() -> None:
    """Uniform within sqrt(6 / (3 * patch^2 + D)), as the authors' code has it."""
    layer = peft.get_peft_model(timm_vit(), VPTConfig(num_tokens=1000)).base_model.model.blocks[1]
    bound = (6 / (3 * 4 * 4 + WIDTH)) ** 0.5
    largest = layer.vpt_prompts["default"].abs().max().item()
    assert 0.99 * bound < largest <= bound


@pytest.mark.parametrize("deep", [True, False])
def test_dropout_is_in_training_only_and_for_each_sample(deep: bool) -> None:
    model = peft.get_peft_model(timm_vit(), VPTConfig(num_tokens=TOKENS, deep=deep, dropout=0.5))
    x = images(1).expand(2, -1, -1, -1)
    one, other = model.train()(x)
    assert not torch.equal(one, other)
    one, other = model.eval()(x)
    assert torch.allclose(one, other, atol=1e-6)


def test_shallow_and_deep_prompts_together() -> None:
    """Deep ones come and go in each block while the shallow ones pass through all."""
    x = images(dtype=torch.float64)
    model = peft.get_peft_model(timm_vit().double(), VPTConfig(num_tokens=2, init_weights=False), "deep")
    model.add_adapter("shallow", VPTConfig(num_tokens=3, deep=False, init_weights=False))
    model.base_model.set_adapter(["deep", "shallow"])
    layers = list(model.base_model.model.blocks)
    kept = layers[0].prompts("shallow")
    plain = timm_vit().double()
    tokens = plain._pos_embed(plain.patch_embed(x))
    tokens = torch.cat([tokens, kept.expand(2, -1, -1)], dim=1)
    for layer, block in zip(layers, plain.blocks, strict=True):
        rows = layer.prompts("deep").expand(2, -1, -1)
        tokens = block(torch.cat([tokens, rows], dim=1))[:, : tokens.shape[1]]
    want = plain.forward_head(plain.norm(tokens[:, : -len(kept)]))
    assert torch.allclose(model(x), want, atol=1e-12)


def test_shallow_prompts_of_several_lengths_do_not_share_a_batch() -> None:
    model = peft.get_peft_model(timm_vit(), VPTConfig(num_tokens=2, deep=False)).eval()
    model.add_adapter("longer", VPTConfig(num_tokens=3, deep=False))
    for names in (["default", "longer"], ["default", "__base__"]):
        with pytest.raises(InputError, match="shallow prompts of several lengths in one batch"):
            model(images(), adapter_names=names)


def test_deep_prompts_of_several_lengths_share_a_batch() -> None:
    model = peft.get_peft_model(timm_vit(), VPTConfig(num_tokens=2, init_weights=False)).eval()
    model.add_adapter("longer", VPTConfig(num_tokens=3, init_weights=False))
    x = images(3)
    with model.disable_adapter():
        rows = [model(x[:1])]
    for i, name in enumerate(["longer", "default"], 1):
        model.set_adapter(name)
        rows.append(model(x[i : i + 1]))
    mixed = model(x, adapter_names=["__base__", "longer", "default"])
    assert torch.allclose(mixed, torch.cat(rows), atol=1e-5)


class TupleBlock(nn.Module):
    """A block as in transformers 4: a tuple of the tokens and, if asked for, the attention."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, head_mask: Tensor | None = None, output_attentions: bool = False) -> tuple:
        return (self.block(x), None) if output_attentions else (self.block(x),)


class TupleViT(nn.Module):
    """A vision transformer of such blocks, called as transformers 4 does."""

    def __init__(self, output_attentions: bool) -> None:
        super().__init__()
        self.vit = timm_vit()
        self.vit.blocks = nn.ModuleList(map(TupleBlock, self.vit.blocks))
        self.output_attentions = output_attentions

    def forward(self, x: Tensor) -> Tensor:
        x = self.vit._pos_embed(self.vit.patch_embed(x))
        for block in self.vit.blocks:
            output = block(x, None, self.output_attentions)
            assert len(output) == 1 + self.output_attentions
            x = output[0]
        return self.vit.forward_head(self.vit.norm(x))


@pytest.mark.parametrize("output_attentions", [False, True])
@pytest.mark.parametrize("deep", [True, False])
def test_blocks_that_return_tuples(deep: bool, output_attentions: bool) -> None:
    models = []
    for base in (TupleViT(output_attentions), timm_vit()):
        torch.manual_seed(1)
        models.append(peft.get_peft_model(base, VPTConfig(num_tokens=TOKENS, deep=deep)).eval())
        models[-1].add_adapter("other", VPTConfig(num_tokens=TOKENS, deep=deep))
    x, names = images(3), ["other", "default", "other"]
    assert torch.equal(models[0](x), models[1](x))
    assert torch.equal(models[0](x, adapter_names=names), models[1](x, adapter_names=names))


@pytest.mark.parametrize(
    ("options", "wrapped"),
    [
        ({}, ["0", "1", "2"]),
        ({"deep": False}, ["0", "2"]),
        ({"layers_to_transform": [0, 2]}, ["0", "2"]),
        ({"layers_to_transform": 1}, ["1"]),
        ({"exclude_modules": ["blocks.0"]}, ["1", "2"]),
        ({"target_modules": r"blocks\.[12]", "deep": False}, ["1", "2"]),
        ({"target_modules": ["blocks.1"], "deep": False}, ["1"]),
    ],
)
@pytest.mark.filterwarnings("ignore:You have passed exclude_modules")
def test_which_blocks_are_wrapped(options: dict, wrapped: list[str], tmp_path: Path) -> None:
    model = peft.get_peft_model(timm_vit(), VPTConfig(num_tokens=TOKENS, **options)).eval()
    inner = model.base_model.model
    assert [n for n, block in inner.blocks.named_children() if hasattr(block, "base_layer")] == wrapped
    assert model.peft_config["default"].target_modules == [f"blocks.{n}" for n in wrapped]
    x = images()
    model.save_pretrained(tmp_path)
    back = peft.PeftModel.from_pretrained(timm_vit(), tmp_path).eval()
    assert torch.equal(back(x), model(x))
    assert model(x).shape == (2, 5)


def test_more_blocks_than_peft_shortens_target_modules_for() -> None:
    model = peft.get_peft_model(timm_vit(depth=24), VPTConfig(num_tokens=1))
    assert len(model.peft_config["default"].target_modules) == 24


def test_one_side_of_a_model_of_two() -> None:
    sides = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.CLIPConfig(
        vision_config={**sides, "image_size": 16, "patch_size": 4}, text_config={**sides, "vocab_size": 30}
    )
    model = transformers.CLIPModel(config)
    with pytest.raises(
        InputError, match=r"has: text_model\.encoder\.layers \(2\), vision_model\.encoder\.layers \(2\)"
    ):
        peft.get_peft_model(model, VPTConfig())
    with pytest.raises(InputError, match="shallow prompts go through one list of blocks"):
        peft.get_peft_model(model, VPTConfig(target_modules=r".*\.layers\.\d+", deep=False))
    peft.get_peft_model(model, VPTConfig(num_tokens=2, target_modules=r"vision_model\.encoder\.layers\.\d+"))
    assert sorted(n for n, m in model.named_modules() if hasattr(m, "base_layer")) == [
        "vision_model.encoder.layers.0",
        "vision_model.encoder.layers.1",
    ]


def test_recorded_hidden_states_have_the_prompts_last() -> None:
    plain, x = transformers_vit(), images()
    model = peft.get_peft_model(transformers_vit(), VPTConfig(num_tokens=TOKENS)).eval()
    states = model(x, output_hidden_states=True).hidden_states
    want = plain(x, output_hidden_states=True).hidden_states
    assert torch.equal(states[0][:, :17], want[0])
    assert [state.shape for state in states[:-1]] == [(2, 17 + TOKENS, WIDTH)] * DEPTH


def _windowed() -> nn.Module:
    model = timm_vit()
    for block in model.blocks:
        block.window_size = 2
    return model


def _swin() -> nn.Module:
    return SwinTransformer(
        img_size=16, patch_size=4, embed_dim=8, depths=(2,), num_heads=(2,), window_size=2, num_classes=2
    )


def _beit(**kwargs: bool) -> nn.Module:
    return Beit(img_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=2, **kwargs)


def _eva() -> nn.Module:
    return Eva(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=2, use_rot_pos_emb=True)


def _xcit() -> nn.Module:
    return Xcit(img_size=16, patch_size=8, embed_dim=8, depth=1, cls_attn_layers=1, num_heads=2, num_classes=2)


def _language(cls: str) -> nn.Module:
    if cls == "GPT2":
        return transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=20))
    options = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    return transformers.LlamaModel(transformers.LlamaConfig(vocab_size=20, **options))


def _transformers_beit(**kwargs: bool) -> nn.Module:
    options = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    return transformers.BeitModel(transformers.BeitConfig(image_size=16, patch_size=4, **options, **kwargs))


def _sequence_first() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_windowed, "within windows"),
        (_swin, "positions in its attention"),
        (lambda: _beit(use_rel_pos_bias=True), "positions in its attention"),
        (
            lambda: _beit(use_shared_rel_pos_bias=True),
            r"rotary or relative positions in its attention \(rel_pos_bias\)",
        ),
        (lambda: _transformers_beit(use_relative_position_bias=True), "positions in its attention"),
        (lambda: _transformers_beit(use_shared_relative_position_bias=True), "positions in its attention"),
        (_eva, r"rotary or relative positions in its attention \(rope\)"),
        (lambda: _language("GPT2"), "causal attention"),
        (lambda: _language("Llama"), "causal attention"),
        (_xcit, "lets the class token alone attend"),
        (_sequence_first, "sequence before the batch"),
    ],
)
def test_attention_that_a_prompt_does_not_fit_is_refused(make, why: str) -> None:
    model = make()
    with pytest.raises(InputError, match=rf"layer '.*0' \(\w+\) .*{why}.*; prompts go on blocks with full attention"):
        peft.get_peft_model(model, VPTConfig())
    assert not any(hasattr(m, "base_layer") for m in model.modules())


@pytest.mark.parametrize("target", ["blocks.0.attn", "blocks.0.mlp", "blocks.0.attn.qkv", "patch_embed"])
def test_what_is_no_block_is_refused(target: str) -> None:
    with pytest.raises(InputError, match=f"layer '{target}'.* is not a transformer block"):
        peft.get_peft_model(timm_vit(), VPTConfig(target_modules=[target]))


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Conv2d(3, 4, 2))])
def test_a_model_without_blocks_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="this Sequential has: none"):
        peft.get_peft_model(model, VPTConfig())


@pytest.mark.parametrize("deep", [True, False])
def test_masks_are_refused_when_given(deep: bool) -> None:
    model = peft.get_peft_model(timm_vit(), VPTConfig(num_tokens=TOKENS, deep=deep))
    with pytest.raises(InputError, match=r"block 'blocks\.0' got attn_mask, a mask or a position"):
        model.base_model.model.forward_features(images(), attn_mask=torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(InputError, match="is_causal=True"):
        model.base_model.model.blocks[0](torch.zeros(1, 17, WIDTH), is_causal=True)
    with pytest.raises(InputError, match="got argument 2"):
        model.base_model.model.blocks[0](torch.zeros(1, 17, WIDTH), torch.zeros(17, 17))
    with pytest.raises(InputError, match=rf"shape \(1, 4, 4, {WIDTH}\)"):
        model.base_model.model.blocks[0](torch.zeros(1, 4, 4, WIDTH))


def test_blocks_that_change_the_length_are_refused() -> None:
    model = timm_vit()
    model.blocks[1].forward = lambda x: x[:, ::2]
    model = peft.get_peft_model(model, VPTConfig(num_tokens=TOKENS))
    with pytest.raises(InputError, match=r"block 'blocks\.1' turned .* prompts need blocks that keep the shape"):
        model(images())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, r"num_tokens=0 is out of range"),
        ({"deep": 1}, r"deep=1 is not one of True, False"),
        ({"projection": "approx-orthogonal"}, r"did you mean 'approx_orthogonal'"),
        ({"deep": False, "layers_to_transform": [0]}, r"layers_to_transform=\[0\] needs deep=True"),
        ({"layers_to_transform": [0], "layers_pattern": "blocks"}, r"layers_pattern='blocks' has no meaning"),
        ({"init_weights": "paper"}, r"init_weights='paper'"),
    ],
)
def test_bad_fields(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VPTConfig(**options)


def test_more_prompts_than_a_vector_generates() -> None:
    config = VPTConfig(num_tokens=WIDTH, projection="approx_orthogonal")
    peft.get_peft_model(timm_vit(), config)
    config = VPTConfig(num_tokens=WIDTH + 1, projection="approx_orthogonal")
    with pytest.raises(InputError, match=rf"num_tokens={WIDTH + 1} is out of range for 'blocks\.0': .* D = {WIDTH}"):
        peft.get_peft_model(timm_vit(), config)


def test_shallow_adapters_go_through_the_same_blocks() -> None:
    model = peft.get_peft_model(timm_vit(), VPTConfig(deep=False))
    with pytest.raises(InputError, match=r"from 'blocks\.0' to 'blocks\.1' do not go with .* to 'blocks\.2'"):
        model.add_adapter("other", VPTConfig(deep=False, target_modules=["blocks.0", "blocks.1"]))
