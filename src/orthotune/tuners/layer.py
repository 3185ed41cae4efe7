"""The adapter layer: what every method shares, whatever its base layer.

A method is a mixin over :class:`AdapterLayer` that says what its parameters are and how they change a weight matrix
and a bias. A host (:mod:`orthotune.tuners.hosts`) says how a base layer's weight is seen as that matrix and how it is
run. Merging, unmerging, dtypes and the loop over adapters exist once, here.

Several active adapters act one after the other on the weight, in the order of ``active_adapters``: W* = f_k(...f_1(W)).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.ops.precision import compute_dtype
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.merged_weight import MergedWeight
from orthotune.tuners.merging import MergingLayer
from orthotune.tuners.sharding import whole

if TYPE_CHECKING:
    from orthotune.tuners.combining import Combination

BASE = "__base__"  # PEFT's name, among those of a batch's samples, for no adapter


class AdapterLayer(nn.Module, MergingLayer):
    """A base layer and its adapters.

    Attributes:
        base_layer: the frozen layer.
        adapter_options: the configuration of each adapter, by name.
        in_features, out_features: D and n of the base weight seen as a matrix.
        channels_first: whether the channels are dimension 1 of the output rather than the last.
    """

    method: ClassVar[str]
    # by combination_type, the default first: the ways in which adapters can be combined into one
    combinations: ClassVar[dict[str, Combination]] = {}
    _z3_leaf = True  # DeepSpeed: fetch all that is in the layer when it is called, since not all of it is called itself
    other_param_names: tuple[str, ...] = ("adapter_options",)

    in_features: int
    out_features: int
    channels_first: bool = False

    if TYPE_CHECKING:  # parameters by name are ParameterDicts, PEFT's attributes are untyped
        _active_adapter: str | list[str]

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, base_layer: nn.Module, module_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        self.in_features, self.out_features = self.matrix_shape(self.get_base_layer())
        self.adapter_options: dict[str, Any] = {}
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict({}))
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._merged_weight = MergedWeight()
        self._holders: dict[tuple[str, str], AdapterLayer] = {}  # of parameters shared with other layers
        self.shared: dict[Hashable, AdapterLayer] = {}  # see :meth:`share`

    # What a host supplies

    @classmethod
    def matrix_shape(cls, base_layer: Any) -> tuple[int, int]:
        """Return (D, n) of the base layer's weight seen as a matrix."""
        raise NotImplementedError

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Lay the base weight out as a matrix (n, D)."""
        raise NotImplementedError

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Inverse of :meth:`to_matrix`."""
        raise NotImplementedError

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer with the given adapters, at least one, none of them merged."""
        raise NotImplementedError

    # What a method supplies

    @classmethod
    def check(cls, config: Any, module_name: str, in_features: int, out_features: int) -> None:
        """Raise InputError if the configuration does not fit a layer of this size."""

    def create_parameters(self, adapter_name: str, config: Any) -> None:
        """Make the adapter's parameters, on the CPU in float32."""
        raise NotImplementedError

    def adapt_matrix(self, matrix: Tensor, adapter: str) -> Tensor:
        """Return W* (n, D) for the weight matrix W (n, D), float32 or float64; differentiable in the adapter."""
        raise NotImplementedError

    def adapt_bias(self, bias: Tensor | None, adapter: str) -> Tensor | None:
        """Return b* (n,) for the bias b."""
        return bias

    def adapt(self, matrix: Tensor, bias: Tensor | None, adapter: str) -> tuple[Tensor, Tensor | None]:
        """Return W* and b*; for a method whose b* depends on W."""
        return self.adapt_matrix(matrix, adapter), self.adapt_bias(bias, adapter)

    def neutral(self, name: str, adapter: str) -> Tensor | float:
        """Return the value of a parameter that leaves the layer as it is, around which ``Linear`` combines."""
        return 0.0

    def low_rank_change(self, adapter: str) -> tuple[Tensor, Tensor] | None:
        """Return A (k, D) and B (n, k), float64, with W* = W + B A, if the method has such factors."""
        return None

    # Shared by all

    def update_layer(self, adapter_name: str, config: AdapterConfig) -> None:
        """Add an adapter."""
        self.check(config, self.module_name, self.in_features, self.out_features)
        self.adapter_options[adapter_name] = config
        self.create_parameters(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def share(self, name: str, adapter: str, group: Hashable, make: Callable[[], Tensor]) -> None:
        """Give the adapter a parameter that all layers of ``group`` have in common: the first of them holds it.

        ``shared``, which all layers of one model refer to, says which layer that is.
        """
        key = name, adapter, group
        holder = self.shared.get(key)
        if holder is None or adapter not in getattr(holder, name):
            holder = self.shared[key] = self
            getattr(self, name)[adapter] = nn.Parameter(make())
        self._holders[name, adapter] = holder

    def own_adapters(self, names: list[str]) -> list[str]:
        """Those of ``names`` that this layer has, in order."""
        return [name for name in names if name in self.adapter_options]

    def parameter(self, name: str, adapter: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return an adapter's parameter in the dtype to compute in: at least float32, wider if ``dtype`` is."""
        value = whole(getattr(self._holders.get((name, adapter), self), name)[adapter])
        wanted = compute_dtype(value.dtype)
        return value.to(wanted if dtype is None else torch.promote_types(wanted, dtype))

    def adapted_weight(self, adapters: list[str], dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the base layer's weight and bias with the adapters in them, at least float32, in the base layout.

        ``dtype`` says what to compute in instead: float32 or float64.
        """
        base = self.get_base_layer()
        matrix = self.to_matrix(self.base_weight())
        matrix = matrix.to(compute_dtype(matrix.dtype) if dtype is None else dtype)
        bias = getattr(base, "bias", None)
        bias = None if bias is None else bias.to(matrix.dtype)
        for adapter in adapters:
            matrix, bias = self.adapt(matrix, bias, adapter)
        return self.from_matrix(matrix), bias

    @torch.no_grad()
    def weight_change(self, adapter: str) -> tuple[Tensor, Tensor | None]:
        """Return W* - W and b* - b (None without a bias) of one adapter alone, float64, in the base layout.

        Raises InputError for an adapter that has no merged form, while one is merged, and over a quantised weight.
        """
        base = self.get_base_layer()
        self.check_mergeable([adapter])
        if self.merged:
            raise InputError(f"layer {self.module_name!r} has adapters merged into it: call unmerge_adapter() first")
        if not base.weight.is_floating_point():
            raise InputError(
                f"layer {self.module_name!r} has a quantised weight ({base.weight.dtype}): load the base model in "
                "floating point to compute the adapter's change of it"
            )
        weight, bias = self.adapted_weight([adapter], torch.float64)
        return weight - base.weight, None if bias is None else bias - base.bias

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT's own converter to LoRA carries this layer's adapter whole; :func:`export_to_lora` asks less."""
        return False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the base layer with the active adapters, if any are enabled and not merged.

        ``adapter_names`` among the keyword arguments names an adapter for each sample instead.
        """
        names = kwargs.pop("adapter_names", None)
        if names is not None:
            return self._mixed_forward(x, names, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = [] if self.disable_adapters else self.own_adapters(self.active_adapters)
        if self.merged or not adapters:
            return self.base_layer(x, *args, **kwargs)
        if self.may_keep_merged() and not any(map(self.merge_obstacle, adapters)):
            return self.merged_forward(x, adapters)
        return self.adapted_forward(x, adapters, *args, **kwargs)

    def _mixed_forward(self, x: Tensor, names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Run a batch whose samples each name an adapter of their own, or :data:`BASE`."""
        if len(names) != len(x):
            raise InputError(
                f"adapter_names has {len(names)} names for a batch of {len(x)} samples: give one for each sample"
            )
        if self.merged:
            raise InputError("adapter_names needs unmerged adapters: call model.unmerge_adapter() first")
        parts, order = [], []
        for name in dict.fromkeys(names):
            rows = [i for i, other in enumerate(names) if other == name]
            adapters = [] if self.disable_adapters else self.own_adapters([name])
            if adapters:
                parts.append(self.adapted_forward(x[rows], adapters, *args, **kwargs))
            else:
                parts.append(self.base_layer(x[rows], *args, **kwargs))
            order += rows
        return _in_order(parts, torch.tensor(order, device=x.device).argsort()) if parts else self.base_layer(x)

    def adapter_tensors(self, adapter: str) -> list[Tensor]:
        """Return all tensors of an adapter in this layer, parameters and buffers, shared ones too."""
        names = (*self.adapter_layer_names, *self.other_param_names)
        stores = (getattr(self._holders.get((name, adapter), self), name) for name in names)
        return [store[adapter] for store in stores if adapter in store and isinstance(store[adapter], Tensor)]

    def may_keep_merged(self) -> bool:
        """Whether this call may compute with an adapted weight that is kept for the next (see ``LinearHost``)."""
        return False

    def merged_forward(self, x: Tensor, adapters: list[str]) -> Tensor:
        """Run the layer with a kept weight, if :meth:`may_keep_merged`."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> AdapterLayer:
        """See torch; going back to training gives the kept weight's memory back."""
        if mode:
            self._merged_weight.clear()
        return super().train(mode)

    def __repr__(self) -> str:
        return f"{self.method}.{super().__repr__()}"


def base_of(module: nn.Module) -> Any:
    """Return the frozen layer under a module's adapters: the module itself where it has none."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _in_order(parts: Sequence[Any], order: Tensor) -> Any:
    """Join the outputs of parts of a batch, tensors or tuples of them, and put the samples in order."""
    if isinstance(parts[0], tuple):
        return tuple(_in_order(column, order) for column in zip(*parts, strict=True))
    return None if parts[0] is None else torch.cat(list(parts))[order]
