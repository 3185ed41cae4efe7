"""AdaptFormer as a PEFT tuner: a bottleneck beside the feed-forward network of each transformer block.

Source: Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS 2022
(arXiv 2205.13535), and the authors' code. The text feeds the branch what the feed-forward network is fed, the
normalised h, and so does this; the authors' code feeds it the block's sum before that normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.ops.precision import layer_dtype
from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.blocks import block_lists, width_of
from orthotune.tuners.layer import base_of
from orthotune.tuners.module_host import ModuleConfig, ModuleHost, ModuleModel
from orthotune.tuners.supported import UnsupportedLayerError

FEED_FORWARD_NAMES = ("mlp", "ffn", "feed_forward")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "none": lambda x: x}


@dataclass
class AdaptFormerConfig(ModuleConfig):
    """Configuration of AdaptFormer: FFN(h) + s up(act(down(h))) (Chen et al., NeurIPS 2022, arXiv 2205.13535).

    With D the width of the model, an adapter has ``adaptformer_down`` (r, D), ``adaptformer_down_bias`` (r,),
    ``adaptformer_up`` (D, r) and ``adaptformer_up_bias`` (D,). The last two are zeros at the start, which is a no-op.

    The targets are the feed-forward modules of all transformer blocks, found where ``target_modules`` is None.
    Raises InputError, a ValueError, for a value out of range.
    """

    r: int = field(
        default=8,
        metadata={"help": "Width of the bottleneck; 8 in later papers' VTAB-1k tables, 64 in AdaptFormer's own."},
    )
    scale: float = field(default=0.1, metadata={"help": "Fixed factor s of the branch."})
    activation: Literal["relu", "gelu", "none"] = field(
        default="relu", metadata={"help": "Function between the two projections."}
    )
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout after the activation, in training; 0.1 in the authors' code."}
    )
    init_weights: bool = field(default=True, metadata={"help": "True: start as a no-op. False: a random start."})

    def __post_init__(self) -> None:
        self.peft_type = peft_type("ADAPTFORMER")
        super().__post_init__()
        self.check_positive("r")
        self.check_choice("activation", tuple(_ACTIVATIONS))
        self.check_choice("init_weights", (True, False))
        self.check_fraction("dropout")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not 0 < self.scale < math.inf:
            raise InputError(f"scale={self.scale!r} is out of range: it is a finite number above 0")


class AdaptFormerLayer(ModuleHost):
    """A feed-forward module with a bottleneck beside it."""

    method = "adaptformer"
    adapter_layer_names: tuple[str, ...] = (
        "adaptformer_down",
        "adaptformer_down_bias",
        "adaptformer_up",
        "adaptformer_up_bias",
    )
    not_mergeable = "its branch runs beside a feed-forward network that is not linear, so no weight can take it in"

    @classmethod
    def check(cls, config: AdaptFormerConfig, module_name: str, in_features: int, out_features: int) -> None:
        config.check_rank(module_name, in_features, out_features)

    def create_parameters(self, adapter_name: str, config: AdaptFormerConfig) -> None:
        down = torch.empty(config.r, self.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        up = torch.zeros(self.in_features, config.r)
        if not config.init_weights:
            nn.init.kaiming_uniform_(up, a=math.sqrt(5))
        self.adaptformer_down[adapter_name] = nn.Parameter(down)
        self.adaptformer_down_bias[adapter_name] = nn.Parameter(torch.zeros(config.r))
        self.adaptformer_up[adapter_name] = nn.Parameter(up)
        self.adaptformer_up_bias[adapter_name] = nn.Parameter(torch.zeros(self.in_features))

    def branch(self, h: Tensor, adapter: str) -> Tensor:
        """Return s up(act(down(h))), (..., D), for h (..., D), in the dtype of h."""
        config = self.adapter_options[adapter]
        down, down_bias, up, up_bias = (getattr(self, name)[adapter].to(h.dtype) for name in self.adapter_layer_names)
        z = _ACTIVATIONS[config.activation](F.linear(h, down, down_bias))
        return config.scale * F.linear(F.dropout(z, config.dropout, self.training), up, up_bias)

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise InputError(
                f"layer {self.module_name!r} does not return one tensor of its input's shape {tuple(x.shape)}, so "
                "nothing can be added to it; name it in exclude_modules"
            )
        h = x.to(layer_dtype(x))
        for adapter in adapters:
            y = y + self.branch(h, adapter).to(y.dtype)
        return y


class AdaptFormerModel(ModuleModel):
    """Puts AdaptFormer adapters on a model.

    Args:
        model: the model to adapt.
        config: an :class:`AdaptFormerConfig`.
        adapter_name: name of the adapter.
        low_cpu_mem_usage: make empty adapter weights on the meta device.
    """

    prefix: str = "adaptformer_"
    tuner_layer_cls = AdaptFormerLayer

    def default_targets(self, model: nn.Module) -> list[str]:
        """Return the names of the feed-forward modules of all transformer blocks."""
        blocks = [name for names in block_lists(model).values() for name in names]
        candidates = [f"{block}.{child}" for block in blocks for child in FEED_FORWARD_NAMES]
        present = dict(model.named_modules())
        found = [name for name in candidates if name in present and width_of(base_of(present[name])) is not None]
        if not found:
            children = dict(model.get_submodule(blocks[0]).named_children()) if blocks else {}
            what = f"its blocks have {', '.join(children)}" if blocks else "no transformer blocks were found"
            raise InputError(
                f"this {type(model).__name__} has no block with a module named {', '.join(FEED_FORWARD_NAMES)} "
                f"({what}): name in target_modules the modules that are whole feed-forward networks, from width D to "
                "width D; a model that keeps the two halves apart, as BERT does, has none"
            )
        return found

    def check_module(self, model: nn.Module, name: str) -> None:
        module = base_of(model.get_submodule(name))
        if isinstance(module, nn.Linear) or width_of(module) is None:
            raise UnsupportedLayerError(
                f"layer {name!r} ({type(module).__name__}) is not a whole feed-forward network, from width D to width "
                "D; target one, such as 'blocks.0.mlp' in timm's ViT (BERT, which keeps the two halves apart, has none)"
            )


register("adaptformer", AdaptFormerConfig, AdaptFormerModel)
