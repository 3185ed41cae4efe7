"""What scales or shifts a layer's output, y * g + f: shared by SSF, BitFit, RLRR's norms and every shift of a bias."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.sharding import shape_of


class ShiftLayer(AdapterLayer):
    """A layer that may have a shift f of its bias, one number an output: the parameter ``<method>_shift``.

    A layer without a bias gets none: it could not be merged into the layer.
    """

    def create_shift(self, adapter: str, random: bool) -> None:
        """Make an adapter's shift, zeros or (``random``) a random start."""
        bias = getattr(self.get_base_layer(), "bias", None)
        if bias is not None:
            shift = torch.zeros(shape_of(bias))
            self.shifts[adapter] = nn.Parameter(shift.normal_(std=0.2) if random else shift)

    @property
    def shifts(self) -> nn.ParameterDict:
        """The shifts by adapter."""
        return getattr(self, f"{self.method}_shift")

    def adapt_bias(self, bias: Tensor | None, adapter: str) -> Tensor | None:
        if bias is None or adapter not in self.shifts:
            return bias
        return bias + self.parameter(f"{self.method}_shift", adapter, bias.dtype)


class AffineLayer(ShiftLayer):
    """y * g + f on a layer's output (SSF, Lian et al., NeurIPS 2022, arXiv 2210.08823): g scales the weight's rows."""

    def gain(self, adapter: str, dtype: torch.dtype | None = None) -> Tensor | None:
        """Return g (n,), or None where there is no scale."""
        return None

    def adapt_matrix(self, matrix: Tensor, adapter: str) -> Tensor:
        gain = self.gain(adapter, matrix.dtype)
        return matrix if gain is None else matrix * gain[:, None]

    def adapt_bias(self, bias: Tensor | None, adapter: str) -> Tensor | None:
        gain = None if bias is None else self.gain(adapter, bias.dtype)
        return super().adapt_bias(bias if bias is None or gain is None else bias * gain, adapter)

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        shape = (1, -1, *[1] * (y.ndim - 2)) if self.channels_first else (-1,)
        for adapter in adapters:
            gain = self.gain(adapter)
            if gain is not None:
                y = y * gain.to(y.dtype).view(shape)
            if adapter in self.shifts:
                y = y + self.parameter(f"{self.method}_shift", adapter).to(y.dtype).view(shape)
        return y


def warn_of_layers_without_shift(model: nn.Module, adapter: str) -> None:
    """Warn once, naming them, about the layers of ``adapter`` that have no bias and so no shift."""
    layers = [m for m in model.modules() if isinstance(m, ShiftLayer) and adapter in m.adapter_options]
    bare = [layer.module_name for layer in layers if adapter not in layer.shifts]
    if bare:
        warnings.warn(
            f"{layers[0].method.upper()}: {len(bare)} of {len(layers)} layers have no bias, so they get no shift, "
            f"which could not be merged: {', '.join(bare[:4])}{', ...' if len(bare) > 4 else ''}",
            stacklevel=3,
        )
