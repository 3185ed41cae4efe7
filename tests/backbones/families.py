"""A tiny model of every family of backbones, with the modules that each kind is expected to have."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SCALE = {"layer_scale_init_value": 1.0}
IMAGE = {"image_size": 16, "patch_size": 8}
TEXT = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclasses.dataclass(frozen=True)
class Family:
    """``block``: a block's name with a dot; ``kinds``: its modules by kind, names after ``block``; ``outside``: those
    outside every block, full names; ``blocks``: what the names of all blocks match. ``all-linear`` and ``convs`` not in
    the block are in ``outside`` too.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    block: str
    blocks: str
    kinds: dict[str, str]
    outside: dict[str, str]
    head: str = "head"


def images(size: int = 16, name: str = "x") -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(2, 3, size, size)}


def tokens(**more: Tensor) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"input_ids": torch.arange(3, 15).reshape(2, 6), **more}


def of(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of ``transformers`` made from a configuration."""
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**options))


QKV = {"q": "attn.qkv.q", "k": "attn.qkv.k", "v": "attn.qkv.v", "out": "attn.proj"}
PROJ = {"q": "{}.q_proj", "k": "{}.k_proj", "v": "{}.v_proj"}
FC = {"mlp-in": "mlp.fc1", "mlp-out": "mlp.fc2"}
GATED = {"mlp-in": "mlp.gate_proj mlp.up_proj", "mlp-out": "mlp.down_proj"}
BERT = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "out": "attention.output.dense",
    "mlp-in": "intermediate.dense",
    "mlp-out": "output.dense",
    "norm": "attention.output.LayerNorm output.LayerNorm",
}


def proj(unit: str, out: str) -> dict[str, str]:
    return {**{kind: name.format(unit) for kind, name in PROJ.items()}, "out": f"{unit}.{out}"}


def llama(name: str, norms: str = "", **options: Any) -> Family:
    return Family(
        of(f"{name}ForCausalLM", f"{name}Config", num_key_value_heads=1, **TEXT, **SIZES, **options),
        tokens(),
        "model.layers.1.",
        r"model\.layers\.\d+\.",
        {**proj("self_attn", "o_proj"), **GATED, "norm": f"input_layernorm post_attention_layernorm {norms}"},
        {"norm": "model.norm"},
        "lm_head",
    )


def resnet(block: str, kinds: dict[str, str]) -> Family:
    cls = getattr(timm.models.resnet, block)
    return Family(
        lambda: timm.models.ResNet(cls, (1, 1, 1, 1), num_classes=3, channels=(8, 16, 8, 16), zero_init_last=False),
        images(32),
        "layer2.0.",
        r"layer\d\.\d\.",
        kinds,
        {"conv": "conv1", "norm": "bn1"},
        "fc",
    )


def convnext(**options: bool) -> nn.Module:
    return timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 8, 16), num_classes=3, ls_init_value=1.0, **options)


CONVNEXT_OUTSIDE = {
    "conv": " ".join(["stem.0", *(f"stages.{i}.downsample.1" for i in (1, 2, 3))]),
    "norm": " ".join(["stem.1", *(f"stages.{i}.downsample.0" for i in (1, 2, 3)), "head.norm"]),
}
CLIP_VISION = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, **IMAGE}

FAMILIES: dict[str, Family] = {
    "timm-vit": Family(
        lambda: timm.models.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
        ),
        images(),
        "blocks.1.",
        r"blocks\.\d+\.",
        {**QKV, **FC, "norm": "norm1 norm2"},
        {"conv": "patch_embed.proj", "norm": "norm"},
    ),
    "timm-swin": Family(
        lambda: timm.models.SwinTransformer(
            img_size=32, patch_size=4, embed_dim=16, depths=(1, 2), num_heads=(2, 2), window_size=4, num_classes=3
        ),
        images(32),
        "layers.1.blocks.1.",
        r"layers\.\d+\.blocks\.\d+\.",
        {**QKV, **FC, "norm": "norm1 norm2"},
        {
            "conv": "patch_embed.proj",
            "norm": "patch_embed.norm layers.1.downsample.norm norm",
            "linear": "layers.1.downsample.reduction",
        },
    ),
    "timm-convnext": Family(
        lambda: convnext(),
        images(32),
        "stages.1.blocks.0.",
        r"stages\.\d+\.blocks\.\d+\.",
        {**FC, "norm": "norm"},
        CONVNEXT_OUTSIDE,
    ),
    "timm-convnext-conv-mlp": Family(
        lambda: convnext(conv_mlp=True),
        images(32),
        "stages.1.blocks.0.",
        r"stages\.\d+\.blocks\.\d+\.",
        {**FC, "conv": "mlp.fc1 mlp.fc2", "norm": "norm"},
        CONVNEXT_OUTSIDE,
    ),
    "timm-resnet-basic": resnet("BasicBlock", {"conv": "conv1 conv2 downsample.0", "norm": "bn1 bn2 downsample.1"}),
    "timm-resnet-bottleneck": resnet(
        "Bottleneck", {"conv": "conv1 conv2 conv3 downsample.0", "norm": "bn1 bn2 bn3 downsample.1"}
    ),
    "vit": Family(
        of("ViTForImageClassification", "ViTConfig", **IMAGE, **SIZES),
        images(name="pixel_values"),
        "vit.layers.1.",
        r"vit\.layers\.\d+\.",
        {**proj("attention", "o_proj"), **FC, "norm": "layernorm_before layernorm_after"},
        {"conv": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm"},
        "classifier",
    ),
    "swin": Family(
        of(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[1, 2],
            num_heads=[2, 2],
            window_size=4,
            drop_path_rate=0.0,
        ),
        images(32, "pixel_values"),
        "swin.encoder.layers.1.blocks.1.",
        r"swin\.encoder\.layers\.\d+\.blocks\.\d+\.",
        {**proj("attention", "o_proj"), **FC, "norm": "layernorm_before layernorm_after"},
        {
            "conv": "swin.embeddings.patch_embeddings.projection",
            "norm": "swin.embeddings.norm swin.encoder.layers.0.downsample.norm swin.layernorm",
            "linear": "swin.encoder.layers.0.downsample.reduction",
        },
        "classifier",
    ),
    "dinov2": Family(
        of("Dinov2ForImageClassification", "Dinov2Config", **IMAGE, **{**SIZES, "mlp_ratio": 2}),
        images(name="pixel_values"),
        "dinov2.encoder.layer.1.",
        r"dinov2\.encoder\.layer\.\d+\.",
        {**proj("attention", "o_proj"), **FC, "norm": "norm1 norm2"},
        {"conv": "dinov2.embeddings.patch_embeddings.projection", "norm": "dinov2.layernorm"},
        "classifier",
    ),
    "dinov2-swiglu": Family(
        of("Dinov2Model", "Dinov2Config", use_swiglu_ffn=True, **IMAGE, **SIZES),
        images(name="pixel_values"),
        "encoder.layer.1.",
        r"encoder\.layer\.\d+\.",
        {**proj("attention", "o_proj"), **GATED, "norm": "norm1 norm2"},
        {"conv": "embeddings.patch_embeddings.projection", "norm": "layernorm"},
    ),
    "clip": Family(
        of("CLIPForImageClassification", "CLIPConfig", vision_config=CLIP_VISION),
        images(name="pixel_values"),
        "vision_model.encoder.layers.1.",
        r"vision_model\.encoder\.layers\.\d+\.",
        {**proj("self_attn", "out_proj"), **FC, "norm": "layer_norm1 layer_norm2"},
        {
            "conv": "vision_model.embeddings.patch_embedding",
            "norm": "vision_model.pre_layrnorm vision_model.post_layernorm",
        },
        "classifier",
    ),
    "clip-vision": Family(
        of("CLIPVisionModel", "CLIPVisionConfig", **CLIP_VISION),
        images(name="pixel_values"),
        "encoder.layers.1.",
        r"encoder\.layers\.\d+\.",
        {**proj("self_attn", "out_proj"), **FC, "norm": "layer_norm1 layer_norm2"},
        {"conv": "embeddings.patch_embedding", "norm": "pre_layrnorm post_layernorm"},
    ),
    "convnext": Family(
        of(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_stages=2,
            **SCALE,
        ),
        images(32, "pixel_values"),
        "convnext.encoder.stages.1.layers.0.",
        r"convnext\.encoder\.stages\.\d+\.layers\.\d+\.",
        {"mlp-in": "pwconv1", "mlp-out": "pwconv2", "norm": "layernorm"},
        {
            "conv": "convnext.embeddings.patch_embeddings convnext.encoder.stages.1.downsampling_layer.1",
            "norm": "convnext.embeddings.layernorm convnext.encoder.stages.1.downsampling_layer.0 convnext.layernorm",
        },
        "classifier",
    ),
    "deberta-v3": Family(
        of(
            "DebertaV2ForSequenceClassification",
            "DebertaV2Config",
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            pooler_dropout=0.0,
            **TEXT,
            **SIZES,
            **NO_DROPOUT,
        ),
        tokens(),
        "deberta.encoder.layer.1.",
        r"deberta\.encoder\.layer\.\d+\.",
        {
            **BERT,
            **{
                kind: f"attention.self.{name}_proj" for kind, name in zip("qkv", ("query", "key", "value"), strict=True)
            },
        },
        {"norm": "deberta.embeddings.LayerNorm deberta.encoder.LayerNorm"},
        "classifier",
    ),
    "deberta-own-positions": Family(
        of(
            "DebertaV2Model",
            "DebertaV2Config",
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            share_att_key=False,
            **TEXT,
            **SIZES,
            **NO_DROPOUT,
        ),
        tokens(),
        "encoder.layer.1.",
        r"encoder\.layer\.\d+\.",
        {
            **BERT,
            **{
                kind: f"attention.self.{name}_proj" for kind, name in zip("qkv", ("query", "key", "value"), strict=True)
            },
            "linear": "attention.self.pos_key_proj attention.self.pos_query_proj",
        },
        {"norm": "embeddings.LayerNorm"},
    ),
    "bert": Family(
        of("BertForSequenceClassification", "BertConfig", **TEXT, **SIZES, **NO_DROPOUT),
        tokens(),
        "bert.encoder.layer.1.",
        r"bert\.encoder\.layer\.\d+\.",
        BERT,
        {"norm": "bert.embeddings.LayerNorm", "linear": "bert.pooler.dense"},
        "classifier",
    ),
    "roberta": Family(
        of("RobertaForSequenceClassification", "RobertaConfig", **TEXT, **SIZES, **NO_DROPOUT),
        tokens(),
        "roberta.encoder.layer.1.",
        r"roberta\.encoder\.layer\.\d+\.",
        BERT,
        {"norm": "roberta.embeddings.LayerNorm"},
        "classifier",
    ),
    "llama": llama("Llama"),
    "qwen2": llama("Qwen2"),
    "qwen3": llama("Qwen3", "self_attn.q_norm self_attn.k_norm", head_dim=16),
    "gpt2": Family(
        of("GPT2LMHeadModel", "GPT2Config", n_embd=24, n_layer=2, n_head=2, n_positions=16, **TEXT),
        tokens(),
        "transformer.h.1.",
        r"transformer\.h\.\d+\.",
        {
            "q": "attn.c_attn.q",
            "k": "attn.c_attn.k",
            "v": "attn.c_attn.v",
            "out": "attn.c_proj",
            "mlp-in": "mlp.c_fc",
            "mlp-out": "mlp.c_proj",
            "norm": "ln_1 ln_2",
        },
        {"norm": "transformer.ln_f"},
        "lm_head",
    ),
    **{
        name: Family(
            of(
                "T5ForConditionalGeneration",
                "T5Config",
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
                feed_forward_proj=act,
                decoder_start_token_id=0,
                **TEXT,
            ),
            tokens(labels=torch.arange(4, 14).reshape(2, 5)),
            "decoder.block.1.",
            r"(encoder|decoder)\.block\.\d+\.",
            {
                **{
                    kind: f"layer.0.SelfAttention.{last} layer.1.EncDecAttention.{last}"
                    for kind, last in zip(("q", "k", "v", "out"), "qkvo", strict=True)
                },
                "mlp-in": " ".join(f"layer.2.DenseReluDense.{last}" for last in into.split()),
                "mlp-out": "layer.2.DenseReluDense.wo",
                "norm": "layer.0.layer_norm layer.1.layer_norm layer.2.layer_norm",
            },
            {"norm": "encoder.final_layer_norm decoder.final_layer_norm"},
            "lm_head",
        )
        for name, act, into in (("t5", "relu", "wi"), ("t5-gated", "gated-gelu", "wi_0 wi_1"))
    },
}


def build(name: str) -> nn.Module:
    """The family's model, the same each time, in evaluation mode."""
    torch.manual_seed(0)
    return FAMILIES[name].build().eval()


@functools.cache
def shared(name: str) -> nn.Module:
    """The family's model, to be looked at only."""
    return build(name)


def run(family: Family, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What the model returns: logits, or the last hidden state where it has no head."""
    output = model(*inputs.values()) if set(inputs) == {"x"} else model(**inputs)
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits
