"""Small vision transformers from timm and transformers, and the configurations that wrap their modules."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from orthotune.tuners.adaptformer import AdaptFormerConfig
from orthotune.tuners.vpt import VPTConfig

WIDTH, DEPTH = 20, 3

CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "vpt-deep": (VPTConfig, {"num_tokens": 3}),
    "vpt-shallow": (VPTConfig, {"num_tokens": 3, "deep": False}),
    "vpt-deep-aoft": (VPTConfig, {"num_tokens": 3, "projection": "approx_orthogonal"}),
    "vpt-shallow-aoft": (VPTConfig, {"num_tokens": 3, "deep": False, "projection": "approx_orthogonal"}),
    "adaptformer": (AdaptFormerConfig, {"r": 4}),
}


def config(name: str, **kwargs: Any) -> Any:
    """Make a fresh configuration of one of the cases."""
    cls, defaults = CONFIGS[name]
    return cls(**{**defaults, **kwargs})


def timm_vit(depth: int = DEPTH, **kwargs: Any) -> VisionTransformer:
    """A small ViT of timm's, in evaluation mode; the same one every time."""
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=WIDTH, depth=depth, num_heads=2, num_classes=5, **kwargs
    ).eval()


def transformers_vit() -> ViTForImageClassification:
    """A small ViT of transformers', in evaluation mode; the same one every time."""
    torch.manual_seed(0)
    options = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    return ViTForImageClassification(options).eval()


MODELS = {"timm": timm_vit, "transformers": transformers_vit}


def wraps(name: str, model_name: str) -> bool:
    """Whether a case wraps modules that the model has: the ViT of transformers 4 has no feed-forward module."""
    names = {n.rpartition(".")[2] for n, _ in MODELS[model_name]().named_modules()}
    return name != "adaptformer" or "mlp" in names


def images(count: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make a batch (count, 3, 16, 16); the same one every time."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


def logits(model: nn.Module, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Run a model and return its logits (B, 5)."""
    output = model(x, **kwargs)
    return output if isinstance(output, torch.Tensor) else output.logits
