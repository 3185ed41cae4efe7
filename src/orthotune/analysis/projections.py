"""The matrices that an adapter consists of, by kind of layer: what AOFT's observation is about."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.vera import VeraLayer
from torch import Tensor, nn

from orthotune.ops import approx_orthogonal, givens
from orthotune.tuners.adaptformer import AdaptFormerLayer
from orthotune.tuners.aoft import AOFTLayer
from orthotune.tuners.arc import ARCLinear
from orthotune.tuners.bottleneck import BottleneckLinear
from orthotune.tuners.fact import FacTLinear
from orthotune.tuners.goft import GOFTLayer
from orthotune.tuners.rlrr import RLRRLayer
from orthotune.tuners.vpt import VPTLayer

WIDE = torch.float64


@singledispatch
def projections(layer: Any, adapter: str) -> dict[str, Tensor]:
    """Return the matrices of an adapter of one layer by name, float64, (out, in) as in torch; none for other layers.

    A low-rank change has ``down`` (r, D) and ``up`` (n, r): the rows of one and the columns of the other are the r
    vectors of full length. Where a method generates them (AOFT), these are the generated matrices.
    """
    return {}


@projections.register
def _(layer: LoraLayer, adapter: str) -> dict[str, Tensor]:
    if adapter not in layer.lora_A:
        return {}
    return {"down": _weight(layer.lora_A[adapter]), "up": _weight(layer.lora_B[adapter])}


@projections.register
def _(layer: VeraLayer, adapter: str) -> dict[str, Tensor]:
    if adapter not in layer.vera_lambda_b:
        return {}
    down, up = layer.vera_A[adapter][:, : layer.in_features], layer.vera_B[adapter][: layer.out_features]
    return {"down": down.to(WIDE), "up": up.to(WIDE)}


@projections.register
def _(layer: AOFTLayer, adapter: str) -> dict[str, Tensor]:
    rank, found = layer.adapter_options[adapter].r, {}
    for i, (down, up, _) in enumerate(layer.terms(adapter, WIDE)[: layer.adapter_options[adapter].num_updates]):
        number = f" {i + 1}" if i else ""
        found[f"down{number}"] = approx_orthogonal.dense(down, rank).T
        found[f"up{number}"] = approx_orthogonal.dense(up, rank)
    return found


@projections.register
def _(layer: BottleneckLinear, adapter: str) -> dict[str, Tensor]:
    config = layer.adapter_options[adapter]
    down, up = (layer.parameter(f"bottleneck_{name}", adapter, WIDE) for name in ("down", "up"))
    if config.projection == "approx_orthogonal":
        return {"down": approx_orthogonal.dense(down, config.r).T, "up": approx_orthogonal.dense(up, config.r)}
    return {"down": down, "up": up}


@projections.register
def _(layer: AdaptFormerLayer, adapter: str) -> dict[str, Tensor]:
    return {name: layer.parameter(f"adaptformer_{name}", adapter, WIDE) for name in ("down", "up")}


@projections.register
def _(layer: FacTLinear, adapter: str) -> dict[str, Tensor]:
    u, _, v = layer.factors(adapter, WIDE)
    return {"down": u.T, "up": v}


@projections.register
def _(layer: ARCLinear, adapter: str) -> dict[str, Tensor]:
    return {"down": layer.parameter("arc_projection", adapter, WIDE).T}


@projections.register
def _(layer: VPTLayer, adapter: str) -> dict[str, Tensor]:
    return {"prompts": layer.prompts(adapter, WIDE)} if layer.is_first(layer.adapter_options[adapter]) else {}


@projections.register
def _(layer: RLRRLayer, adapter: str) -> dict[str, Tensor]:
    left, right = layer.factors(adapter, WIDE)
    return {"left": left.T, "right": right.T}


@projections.register
def _(layer: GOFTLayer, adapter: str) -> dict[str, Tensor]:
    config = layer.adapter_options[adapter]
    if not config.quasi:  # a rotation, exactly
        return {}
    rotations = layer.rotations(adapter, WIDE)
    return {"rotation": givens.dense(rotations, layer.in_features, layout=config.layout)}


def _weight(projection: Any) -> Tensor:
    """Return the weight of one of LoRA's layers; AdaLoRA has bare matrices in their place."""
    weight: Tensor = projection.weight if isinstance(projection, nn.Module) else projection  # type: ignore[assignment]
    return weight.flatten(1).to(WIDE)
