"""BitFit: the biases alone (Ben Zaken et al., ACL 2022, arXiv 2106.10199), as shifts that can be saved and merged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from orthotune.errors import InputError
from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.affine import AffineLayer
from orthotune.tuners.combining import Combination, Linear
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.hosts import Conv2dHost, LinearHost, NormHost
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.model import AdapterModel


@dataclass
class BitFitConfig(AdapterConfig):
    """Configuration of BitFit: b* = b + f for every targeted layer that has a bias, f = ``bitfit_shift`` (n,).

    Training f is training b. Layers without a bias are left as they are. Raises InputError, a ValueError, for a value
    out of range.
    """

    init_weights: bool = field(default=True, metadata={"help": "True: start as a no-op. False: a random start."})

    def __post_init__(self) -> None:
        self.peft_type = peft_type("BITFIT")
        super().__post_init__()
        self.check_choice("init_weights", (True, False))


class BitFitLayer(AffineLayer):
    """A shift of a layer's bias."""

    method = "bitfit"
    adapter_layer_names: tuple[str, ...] = ("bitfit_shift",)
    combinations: ClassVar[dict[str, Combination]] = {"linear": Linear()}

    def create_parameters(self, adapter_name: str, config: BitFitConfig) -> None:
        self.create_shift(adapter_name, random=not config.init_weights)


class BitFitLinear(BitFitLayer, LinearHost):
    """On the bias of a linear layer."""


class BitFitConv2d(BitFitLayer, Conv2dHost):
    """On the bias of a convolution."""


class BitFitNorm(BitFitLayer, NormHost):
    """On the bias of a normalisation."""


class BitFitModel(AdapterModel):
    """Puts BitFit adapters on a model."""

    prefix: str = "bitfit_"
    tuner_layer_cls = BitFitLayer
    layer_classes: ClassVar[dict[type[AdapterLayer], type[AdapterLayer]]] = {
        LinearHost: BitFitLinear,
        Conv2dHost: BitFitConv2d,
        NormHost: BitFitNorm,
    }

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """See PEFT; InputError if no targeted layer has a bias."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = [m for m in model.modules() if isinstance(m, BitFitLayer) and adapter_name in m.adapter_options]
        if layers and not any(adapter_name in layer.bitfit_shift for layer in layers):
            names = ", ".join(layer.module_name for layer in layers[:4])
            raise InputError(
                f"BitFit trains biases, and none of the {len(layers)} targeted layers has one: {names}, ..."
            )


register("bitfit", BitFitConfig, BitFitModel)
