"""Base layers: how the weight of each kind is seen as the papers' matrix, and how the layer is run with an adapter."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.ops import plan
from orthotune.ops.precision import compute_dtype, layer_dtype
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.norms import is_channels_first
from orthotune.tuners.sharding import is_sharded, shape_of


class LinearHost(AdapterLayer):
    """``nn.Linear``, or transformers' ``Conv1D`` whose weight is stored (in, out)."""

    @classmethod
    def matrix_shape(cls, base_layer: Any) -> tuple[int, int]:
        out_features, in_features = shape_of(base_layer.weight)
        if isinstance(base_layer, Conv1D):
            return out_features, in_features
        return in_features, out_features

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the base weight is stored (in, out)."""
        return isinstance(self.get_base_layer(), Conv1D)

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.T if self.fan_in_fan_out else weight

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.T if self.fan_in_fan_out else matrix

    @property
    def is_plain(self) -> bool:
        """Whether calling the base layer is a product with its weight and nothing else, so that it may be left out.

        It is not if another method's adapter lies beneath, or something (a hook, an offloading library) has its hands
        in the call.
        """
        base = self.base_layer
        hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or "forward" in vars(base)
        return type(base).forward in (nn.Linear.forward, Conv1D.forward) and not hooked

    def is_fusable(self, x: Tensor) -> bool:
        """Whether the product of ``x`` with the frozen weight may be taken inside a method's own operator."""
        if not self.is_plain:
            return False
        weight = self.get_base_layer().weight
        ordinary = type(weight) in (nn.Parameter, Tensor)  # FSDP's forward has views in place of parameters
        return ordinary and not weight.requires_grad and x.dtype == weight.dtype

    def may_keep_merged(self) -> bool:
        """In evaluation without gradients: the adapted weight is made once, and costs one copy of the weight.

        It is made anew when an adapter or the base weight has changed. Not under torch.compile, which traces the
        adapter itself, not where the copy would leave the device short of memory, and not where the weight is sharded:
        a copy of it whole would undo that.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or not self.is_plain:
            return False
        base = self.get_base_layer()
        if is_sharded(base):
            return False
        weight = base.weight
        ordinary = type(weight) is nn.Parameter and not weight.is_inference() and weight.device.type in ("cpu", "cuda")
        return ordinary and (not self._merged_weight.empty or plan.is_worth_keeping(weight))

    def merged_forward(self, x: Tensor, adapters: list[str]) -> Tensor:
        base = self.get_base_layer()

        def make() -> tuple[Tensor, Tensor | None]:
            weight, bias = self.adapted_weight(adapters)
            weight = self.to_matrix(weight).to(base.weight.dtype).contiguous()
            return weight, None if bias is None else bias.to(base.bias.dtype)

        tensors = [t for adapter in adapters for t in self.adapter_tensors(adapter)]
        tensors += [base.weight] if base.bias is None else [base.weight, base.bias]
        weight, bias = self._merged_weight.get([self.adapter_options[a] for a in adapters], tensors, make)
        return F.linear(x.to(layer_dtype(x)), weight, bias)

    def run_base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output."""
        y: Tensor = self.base_layer(x, *args, **kwargs)
        return y

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """See PEFT: for an adapter that leaves the bias alone, which the converter would drop in silence."""
        if not self.own_adapters([adapter_name]):
            return True
        if self.merge_obstacle(adapter_name) is not None:
            return False
        bias = self.get_base_layer().bias
        adapted = self.adapted_weight([adapter_name])[1]
        return bias is None or adapted is None or torch.equal(adapted.to(bias.dtype), bias)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return W* - W in the base layout, at least float32; zero where this layer does not have the adapter."""
        weight = self.get_base_layer().weight
        if not self.own_adapters([adapter]):
            return torch.zeros_like(weight, dtype=compute_dtype(weight.dtype))
        return self.weight_change(adapter)[0].to(compute_dtype(weight.dtype))

    def base_linear(self, x: Tensor) -> Tensor:
        """Return ``x W``, the base layer without its bias."""
        base = self.get_base_layer()
        if self.is_plain:
            dtype = layer_dtype(x)
            return F.linear(x.to(dtype), self.to_matrix(base.weight).to(dtype))
        y = self.run_base(x)
        return y if base.bias is None else y - base.bias.to(y.dtype)


class Conv2dHost(AdapterLayer):
    """``nn.Conv2d`` without groups: the kernel (out, in, kh, kw) is the matrix (out, in * kh * kw).

    The adapted kernel is built once a forward pass; stride, padding and dilation are the base layer's own.
    """

    channels_first = True

    @classmethod
    def matrix_shape(cls, base_layer: Any) -> tuple[int, int]:
        out, *rest = shape_of(base_layer.weight)
        return rest[0] * rest[1] * rest[2], out

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(self.get_base_layer().weight.shape)

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        weight, bias = self.adapted_weight(adapters)
        dtype = layer_dtype(x)
        return self.get_base_layer()._conv_forward(
            x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        )


class NormHost(AdapterLayer):
    """A normalisation with a weight per channel (LayerNorm, RMSNorm, GroupNorm, ...): the matrix is (n, 1)."""

    @classmethod
    def matrix_shape(cls, base_layer: Any) -> tuple[int, int]:
        return 1, shape_of(base_layer.weight).numel()

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight[:, None]

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix[:, 0]

    @property
    def channels_first(self) -> bool:  # type: ignore[override]
        return is_channels_first(self.get_base_layer())
