"""Questions one can ask of an adapted model: its penalty, and how far from orthogonal it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orthotune.tuners.aoft import AOFTLayer
from orthotune.tuners.goft import GOFTLayer, penalty


def regularization_loss(model: nn.Module) -> Tensor:
    """Return qGOFT's penalty on the active adapters, weighted with their ``reg_lambda``: a scalar to add to a loss.

    It is sum over layers of reg_lambda * sum over rotations of <(a1, a2), (b1, b2)>^2 (Ma et al., ICML 2024). A model
    that returns its own loss already has it in there; for one that returns logits, add it. Zero where no qGOFT adapter
    is active, on the device of the model's first parameter.
    """
    value = penalty(model)
    if value is not None:
        return value
    parameter = next(model.parameters(), None)
    return torch.zeros((), device=None if parameter is None else parameter.device)


@torch.no_grad()
def orthogonality_defect(model: nn.Module, adapter_name: str | None = None) -> dict[str, float]:
    """Return, by layer name, how far an adapter is from orthogonal.

    max |R^T R - I| of the rotation for GOFT and qGOFT, the larger max |P^T P - I| of the two projections for AOFT, in
    the precision the forward pass computes in. Other layers, RLRR's among them, have no entry.

    Args:
        model: a model with adapters.
        adapter_name: which adapter; by default the worst of the active ones.
    """
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, GOFTLayer | AOFTLayer):
            wanted = layer.active_adapters if adapter_name is None else [adapter_name]
            adapters = layer.own_adapters(wanted)
            if adapters:
                found[name] = max(layer.defect(adapter) for adapter in adapters)
    return found
