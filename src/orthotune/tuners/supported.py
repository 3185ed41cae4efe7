"""Which layers adapters can be put on: the host for each, or an error that names the layer."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import InputError
from orthotune.tuners.fused import FUSED_PARTS
from orthotune.tuners.hosts import Conv2dHost, LinearHost, NormHost
from orthotune.tuners.layer import AdapterLayer, base_of
from orthotune.tuners.norms import scales_with_weight
from orthotune.tuners.quantised import QuantisedHost
from orthotune.tuners.quantisers import as_quantised, has_quantised_weight


class UnsupportedLayerError(InputError, TypeError):
    """A layer that no adapter of this package can be put on."""


def host_of(module: nn.Module, name: str) -> type[AdapterLayer]:
    """Return the host class for a base layer.

    Raises UnsupportedLayerError, naming the layer, its type and what is supported.
    """
    base = base_of(module)
    if as_quantised(base) is not None:
        return QuantisedHost
    if has_quantised_weight(base):
        raise UnsupportedLayerError(
            f"layer {name!r} is a {type(base).__name__} with a quantised weight ({type(base.weight).__name__}, "
            f"{base.weight.dtype}); of quantised layers, only linear ones are supported: name it in exclude_modules"
        )
    if isinstance(base, nn.Linear | Conv1D) and isinstance(getattr(base, "weight", None), Tensor):
        return LinearHost
    if isinstance(base, nn.Conv2d):
        if base.groups != 1:
            raise UnsupportedLayerError(
                f"layer {name!r} is a Conv2d with groups={base.groups}; only groups=1 is supported: leave it out of "
                "target_modules or name it in exclude_modules"
            )
        if module is not base:
            raise UnsupportedLayerError(
                f"layer {name!r} is a Conv2d that carries an adapter of another method ({type(module).__name__}); "
                "put the two on different convolutions"
            )
        return Conv2dHost
    if scales_with_weight(base):
        return NormHost
    raise UnsupportedLayerError(
        f"layer {name!r} is a {type(base).__name__}, which is not supported: adapters go on nn.Linear, transformers' "
        "Conv1D, nn.Conv2d without groups, (RLRR) normalisations whose weight scales their output, and linear "
        "layers quantised by bitsandbytes, torchao, GPTQ, AWQ, HQQ or AQLM; narrow target_modules or name "
        "it in exclude_modules"
    )


def check_is_called(parent: nn.Module, name: str) -> None:
    """Raise UnsupportedLayerError if ``parent`` computes with the weight of its layer ``name`` without calling it.

    An adapter on such a layer would silently do nothing: ``nn.MultiheadAttention``, and timm's attention modules that
    keep the biases of a fused projection apart (BEiT, EVA, Swin v2).
    """
    bypassed = isinstance(parent, nn.MultiheadAttention)
    if name.rpartition(".")[2] in FUSED_PARTS:
        bypassed = bypassed or getattr(parent, "q_bias", None) is not None
    if bypassed:
        raise UnsupportedLayerError(
            f"layer {name!r} belongs to a {type(parent).__name__}, which uses its weight without calling it, so an "
            "adapter would do nothing; name it in exclude_modules"
        )
