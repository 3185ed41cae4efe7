"""Linear layers whose weight is quantised: what is known of each library's, by looking at a layer.

A call of the layer multiplies by its weight, whatever the library, and that is all an adapter needs to run. Merging
also needs the weight as numbers and a way to quantise it again with the same settings, which some libraries have. No
library is imported unless one of its layers is there.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_FEATURES = (("in_features", "out_features"), ("infeatures", "outfeatures"))
_PACKED = ("qweight", "W_q", "codes")  # what GPTQ and AWQ, HQQ and AQLM call a weight that is no plain tensor


class Quantised:
    """A quantised linear layer of which its shape is known and no more."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @property
    def shape(self) -> tuple[int, int]:
        """D and n, from the attributes: a packed weight has another shape."""
        names = next(names for names in _FEATURES if all(hasattr(self.layer, name) for name in names))
        in_features, out_features = (int(getattr(self.layer, name)) for name in names)
        return in_features, out_features

    @property
    def obstacle(self) -> str | None:
        """Why the weight cannot be rewritten, None if it can be."""
        return "its packed weight can be written by the library that quantised it alone"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that a weight is rounded to before it is quantised."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Keep calls of the layer differentiable: in a model with adapters, whether or not one is on this layer."""

    def dequantise(self) -> Tensor:
        """Return the weight (n, D) as floating-point numbers."""
        raise NotImplementedError

    def quantise(self, weight: Tensor) -> nn.Parameter:
        """Return a floating-point weight (n, D) quantised with the settings of the layer's own."""
        raise NotImplementedError

    def take(self) -> nn.Parameter:
        """Return the quantised weight, with all that belongs to it, to be kept."""
        return self.layer.weight

    def tensors(self) -> list[Tensor]:
        """Return all that the quantised weight consists of, as plain tensors."""
        raise NotImplementedError

    def put(self, parameter: nn.Parameter) -> None:
        """Give the layer a quantised weight, on the device of its present one."""
        self.layer.weight = parameter.to(self.layer.weight.device)


class Bnb8bit(Quantised):
    """bitsandbytes' ``Linear8bitLt``: int8 with a scale per row, kept in the layer's state from the first call on."""

    obstacle = None
    dtype = torch.float16  # in which the library quantises

    def _parameter(self, weight: Tensor, scales: Tensor | None = None) -> Any:
        own = self.layer.weight
        quantised = {} if scales is None else {"CB": weight, "SCB": scales}
        return type(own)(weight, requires_grad=False, has_fp16_weights=own.has_fp16_weights, **quantised)

    def _scales(self) -> Tensor:
        return self.layer.weight.SCB if self.layer.state.SCB is None else self.layer.state.SCB

    def dequantise(self) -> Tensor:
        weight = self.layer.weight
        if weight.is_floating_point():  # quantised in each call, or not yet
            return weight.data
        functional = import_module("bitsandbytes.functional")
        return functional.int8_vectorwise_dequant(weight.data, self._scales().to(weight.device))

    def quantise(self, weight: Tensor) -> nn.Parameter:
        own = self.layer.weight
        if own.is_floating_point():
            return self._parameter(weight.to(own))
        return self._parameter(weight.cpu()).to(own.device)  # the move quantises

    def take(self) -> nn.Parameter:
        own = self.layer.weight
        return self._parameter(own.data) if own.is_floating_point() else self._parameter(own.data, self._scales())

    def tensors(self) -> list[Tensor]:
        data: Tensor = self.layer.weight.data
        return [data] if data.is_floating_point() else [data, self._scales()]

    def put(self, parameter: nn.Parameter) -> None:
        super().put(parameter)
        self.layer.state.reset_grads()


class Bnb4bit(Quantised):
    """bitsandbytes' ``Linear4bit``: blocks of 4-bit numbers (n * D / 2, 1), their scales in the quantisation state."""

    @property
    def obstacle(self) -> str | None:
        return None if self._state is not None else "it is not quantised yet: move the model to its device first"

    @property
    def _state(self) -> Any:
        state = getattr(self.layer.weight, "quant_state", None)
        return self.layer.quant_state if state is None else state

    @property
    def dtype(self) -> torch.dtype:
        return self._state.dtype

    def prepare(self) -> None:
        """In evaluation on a CPU with AVX512-BF16, the library repacks a weight into a form that has no gradient.

        It would stay so in the training after, so it is kept from that; a state dict undoes what it has already done.
        """
        if getattr(self._state, "packing_format_for_cpu", False):
            self.layer.state_dict()
        self.layer.support_avx512bf16_for_cpu = False

    def dequantise(self) -> Tensor:
        return import_module("bitsandbytes.functional").dequantize_4bit(self.layer.weight.data, self._state)

    def quantise(self, weight: Tensor) -> nn.Parameter:
        own = self.layer.weight
        names = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
        settings = {name: getattr(own, name) for name in names}
        return type(own)(weight.cpu(), requires_grad=False, **settings).to(own.device)  # the move quantises

    def tensors(self) -> list[Tensor]:
        state = self._state
        nested = [state.offset, state.state2.absmax] if state.nested else []
        return [self.layer.weight.data, state.absmax, *nested]

    def put(self, parameter: nn.Parameter) -> None:
        super().put(parameter)
        self.layer.weight.module = self.layer
        self.layer.quant_state = self.layer.weight.quant_state


class QuantisedTensor(Quantised):
    """``nn.Linear`` whose weight is itself a quantised tensor, of the weight's own shape, such as torchao's."""

    @property
    def obstacle(self) -> str | None:
        kind = type(self.layer.weight).__name__
        if kind not in _TORCHAO or not type(self.layer.weight).__module__.startswith("torchao"):
            return f"a {kind} cannot be turned into numbers and back"
        if getattr(self.layer.weight, "act_pre_scale", None) is not None:
            return "its weight is made for scaled activations"
        return None

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.weight.dtype

    def dequantise(self) -> Tensor:
        return self.layer.weight.dequantize()

    def quantise(self, weight: Tensor) -> nn.Parameter:
        own = self.layer.weight
        return nn.Parameter(_TORCHAO[type(own).__name__](own, weight), requires_grad=False)

    def tensors(self) -> list[Tensor]:
        return [getattr(self.layer.weight, name) for name in self.layer.weight.__tensor_flatten__()[0]]

    def put(self, parameter: nn.Parameter) -> None:
        moved = parameter.to(self.layer.weight.device)
        self.layer.weight = nn.Parameter(moved, requires_grad=False)


def _granularity(own: Any) -> Any:
    kinds = import_module("torchao.quantization.granularity")
    block, shape = tuple(own.block_size), tuple(own.shape)
    if block == shape:
        return kinds.PerTensor()
    return kinds.PerRow() if block == (1, shape[1]) else kinds.PerBlock(block)


def _int8(own: Any, weight: Tensor) -> Any:
    names = ("act_quant_kwargs", "act_quant_scale", "act_quant_zero_point", "reduce_range")
    return type(own).from_hp(weight, _granularity(own), **{name: getattr(own, name) for name in names})


def _float8(own: Any, weight: Tensor) -> Any:
    names = ("mm_config", "kernel_preference", "act_quant_kwargs")
    settings = {name: getattr(own, name) for name in names}
    return type(own).from_hp(weight, own.qdata.dtype, _granularity(own), **settings)


def _intx(own: Any, weight: Tensor) -> Any:
    mappings = import_module("torchao.quantization.quant_primitives").MappingType
    return type(own).from_hp(
        weight,
        own.block_size,
        own.target_dtype,
        mapping_type=mappings.ASYMMETRIC if own.zero_point.any() else mappings.SYMMETRIC,
        activation_quantization=own.activation_quantization,
    )


#: torchao's quantised tensors that can be dequantised, and how a weight is quantised as one of them was
_TORCHAO: dict[str, Callable[[Any, Tensor], Any]] = {
    "Int8Tensor": _int8,
    "Float8Tensor": _float8,
    "IntxUnpackedToInt8Tensor": _intx,
}


def as_quantised(layer: Any) -> Quantised | None:
    """Return what is known of a quantised linear layer, None if ``layer`` is not one that adapters can be put on."""
    bitsandbytes = {cls.__name__ for cls in type(layer).__mro__ if cls.__module__.startswith("bitsandbytes.")}
    if "Linear8bitLt" in bitsandbytes:
        return Bnb8bit(layer)
    if "Linear4bit" in bitsandbytes:
        return Bnb4bit(layer)
    if isinstance(layer, nn.Linear):
        return QuantisedTensor(layer) if has_quantised_weight(layer) else None
    sized = any(all(hasattr(layer, name) for name in names) for names in _FEATURES) and hasattr(layer, "bias")
    packed = any(isinstance(getattr(layer, name, None), Tensor) for name in _PACKED)
    return Quantised(layer) if sized and packed else None


def has_quantised_weight(layer: nn.Module) -> bool:
    """Whether a layer's weight is not floating-point numbers of 16 bits or more; torch's own subclasses are."""
    weight = layer._parameters.get("weight")
    if weight is None:
        return False
    subclass = is_traceable_wrapper_subclass(weight) and not type(weight).__module__.startswith("torch.")
    return subclass or not weight.is_floating_point() or weight.element_size() < 2
