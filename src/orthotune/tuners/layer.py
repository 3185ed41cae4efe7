"""The adapter layer: what every method shares, whatever its base layer.

A method is a mixin over :class:`AdapterLayer` that says what its parameters are and how they change a weight matrix
and a bias. A host (:mod:`orthotune.tuners.hosts`) says how a base layer's weight is seen as that matrix and how it is
run. Merging, unmerging, dtypes and the loop over adapters exist once, here.

Several active adapters act one after the other on the weight, in the order of ``active_adapters``: W* = f_k(...f_1(W)).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.ops.precision import compute_dtype
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.merged_weight import MergedWeight
from orthotune.tuners.sharding import check_whole, whole

BASE = "__base__"  # PEFT's name, among those of a batch's samples, for no adapter


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A base layer and its adapters.

    Attributes:
        base_layer: the frozen layer.
        adapter_options: the configuration of each adapter, by name.
        in_features, out_features: D and n of the base weight seen as a matrix.
    """

    method: ClassVar[str]
    _z3_leaf = True  # DeepSpeed: fetch all that is in the layer when it is called, since not all of it is called itself
    other_param_names: tuple[str, ...] = ("adapter_options",)

    in_features: int
    out_features: int

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
        # what merging replaced, so that unmerging gives back the same bits: weight, bias, checksum of the merged weight
        self._before_merge: tuple[Tensor, Tensor | None, int] | None = None
        self._merged_weight = MergedWeight()

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

    # Shared by all

    def update_layer(self, adapter_name: str, config: AdapterConfig) -> None:
        """Add an adapter."""
        self.check(config, self.module_name, self.in_features, self.out_features)
        self.adapter_options[adapter_name] = config
        self.create_parameters(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def own_adapters(self, names: list[str]) -> list[str]:
        """Those of ``names`` that this layer has, in order."""
        return [name for name in names if name in self.adapter_options]

    def parameter(self, name: str, adapter: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return an adapter's parameter in the dtype to compute in: at least float32, wider if ``dtype`` is."""
        value = whole(getattr(self, name)[adapter])
        wanted = compute_dtype(value.dtype)
        return value.to(wanted if dtype is None else torch.promote_types(wanted, dtype))

    def adapted_weight(self, adapters: list[str]) -> tuple[Tensor, Tensor | None]:
        """Return the base layer's weight and bias with the adapters in them, at least float32, in the base layout."""
        base = self.get_base_layer()
        matrix = self.to_matrix(base.weight)
        matrix = matrix.to(compute_dtype(matrix.dtype))
        bias = getattr(base, "bias", None)
        bias = None if bias is None else bias.to(matrix.dtype)
        for adapter in adapters:
            matrix = self.adapt_matrix(matrix, adapter)
            bias = self.adapt_bias(bias, adapter)
        return self.from_matrix(matrix), bias

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
        if self.may_keep_merged():
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
            run = partial(self.adapted_forward, adapters=adapters) if adapters else self.base_layer
            parts.append(run(x[rows], *args, **kwargs))
            order += rows
        return torch.cat(parts)[torch.tensor(order, device=x.device).argsort()] if parts else self.base_layer(x)

    def adapter_tensors(self, adapter: str) -> list[Tensor]:
        """Return all tensors of an adapter in this layer, parameters and buffers."""
        stores = (getattr(self, name) for name in (*self.adapter_layer_names, *self.other_param_names))
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

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the adapters into the base weight. The weight before is kept, so :meth:`unmerge` is exact.

        Args:
            safe_merge: refuse a result that is not finite, leaving the layer as it was.
            adapter_names: which adapters; by default the active ones.

        Raises ValueError if ``safe_merge`` finds a NaN or an infinity.
        """
        adapters = self.own_adapters(check_adapters_to_merge(self, adapter_names))
        if not adapters:
            return
        if isinstance(self.base_layer, BaseTunerLayer) and not self.base_layer.merged:
            # another method's adapter lies beneath this one, which acts on its result
            self.base_layer.merge(safe_merge=safe_merge)
        base = self.get_base_layer()
        check_whole(base, self.module_name, "merged")
        self._merged_weight.clear()
        weight, bias = self.adapted_weight(adapters)
        weight = weight.to(base.weight.dtype).contiguous()
        if safe_merge and not all(t.isfinite().all() for t in (weight, bias) if t is not None):
            raise InputError(
                f"NaNs detected in the merged weights. The adapter {', '.join(adapters)} seems to be broken in layer "
                f"{self.module_name!r}; nothing was merged into it. Load a checkpoint from before the loss diverged"
            )
        if self._before_merge is None:
            before = base.weight.data, None if bias is None else base.bias.data
        else:
            before = self._before_merge[:2]
        base.weight.data = weight
        if bias is not None:
            base.bias.data = bias.to(base.bias.dtype)
        self._before_merge = (*before, _checksum(weight))
        self.merged_adapters.extend(adapters)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base weight back, bit for bit.

        If something else has changed the weight since (another method merged into it), the change is kept and the
        adapters' part is subtracted instead, which rounds.
        """
        if not self.merged or self._before_merge is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base = self.get_base_layer()
        check_whole(base, self.module_name, "unmerged")
        weight, bias, checksum = self._before_merge
        current, current_bias = base.weight.data, None if bias is None else base.bias.data
        base.weight.data = weight.to(current)
        if bias is not None:
            base.bias.data = bias.to(current_bias)
        if _checksum(current) != checksum:
            merged, merged_bias = self.adapted_weight(self.own_adapters(self.merged_adapters))
            base.weight.data = (current - (merged - base.weight)).to(current.dtype)
            if bias is not None and merged_bias is not None:
                base.bias.data = (current_bias - (merged_bias - base.bias)).to(current.dtype)
        self._before_merge = None
        self.merged_adapters = []

    def __repr__(self) -> str:
        return f"{self.method}.{super().__repr__()}"


def base_of(module: nn.Module) -> Any:
    """Return the frozen layer under a module's adapters: the module itself where it has none."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _checksum(weight: Tensor) -> int:
    """Sum a tensor's bits as integers: exact, whatever the order of summation."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return int(weight.contiguous().view(kind).sum(dtype=torch.int64).item())
