"""GOFT and qGOFT as a PEFT tuner; the maths is in :mod:`orthotune.ops.givens`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.ops import givens
from orthotune.ops.precision import layer_dtype
from orthotune.ops.rotation import rotated_linear
from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.combining import Combination
from orthotune.tuners.combining.goft import Compose, Geodesic
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.hosts import Conv2dHost, LinearHost
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.loss import add_to_loss
from orthotune.tuners.model import AdapterModel
from orthotune.tuners.quantised import QuantisedHost

IGNORED = -100  # the label of what a loss leaves out


@dataclass
class GOFTConfig(AdapterConfig):
    """Configuration of GOFT: W* = R W, R a tree of D - 1 plane rotations (Ma et al., ICML 2024, arXiv 2404.04316).

    With D = in_features and n = out_features of a layer, an adapter has

    * ``goft_theta`` (num_trees * (D - 1),): the angles in radians, zero at the start; or, with ``quasi=True``,
    * ``goft_block`` (num_trees * (D - 1), 2, 2): 2x2 blocks ``[[a1, b1], [a2, b2]]``, the identity at the start;
    * ``goft_scale``, ones at the start: (n,) with ``scale="output"``, W* = R W diag(s), which keeps the angles between
      the neurons; (D,) with ``scale="input"``, W* = R diag(s) W.

    A convolution's neurons are its kernels laid flat: D = in_channels * kh * kw.

    ``freeze`` takes qGOFT apart: "norm" holds the columns of every block at unit norm, "angle" holds them at 90 degrees
    exactly, with no penalty; both together would be GOFT (:func:`orthotune.ops.givens.hold`). The stored ``goft_block``
    is mapped to such a block in every use.

    ``permutations`` and ``transposed`` say what each of the trees of a combination is
    (:func:`orthotune.ops.givens.apply`, ``layout``).
    Raises InputError, a ValueError, for a value out of range.
    """

    quasi: bool = field(
        default=False,
        metadata={"help": "qGOFT: free 2x2 blocks, softly held orthogonal, instead of rotations."},
    )
    scale: Literal["output", "input"] | None = field(
        default=None,
        metadata={"help": "Also learn a diagonal, on the 'output' or the 'input' side of the weight."},
    )
    num_trees: int = field(
        default=1,
        metadata={"help": "Number of rotation trees, with coordinates permuted between them; 1: the paper."},
    )
    permutations: list[int] | None = field(
        default=None,
        metadata={"help": "How many times the coordinates are permuted before each tree; by default 0, 1, 2, ..."},
    )
    transposed: list[bool] | None = field(
        default=None, metadata={"help": "Which trees are transposed; by default none. A combination sets it."}
    )
    freeze: Literal["norm", "angle"] | None = field(
        default=None,
        metadata={"help": "qGOFT with the columns of its blocks held at unit 'norm', or at a right 'angle'."},
    )
    reg_lambda: float = field(
        default=1e-3, metadata={"help": "Strength of qGOFT's orthogonality penalty in the training loss."}
    )
    init_weights: bool | Literal["paper"] = field(
        default=True, metadata={"help": "True or 'paper': start as a no-op. False: a random start."}
    )

    def __post_init__(self) -> None:
        self.peft_type = peft_type("GOFT")
        super().__post_init__()
        self.check_choice("scale", (None, "output", "input"))
        self.check_choice("init_weights", (True, False, "paper"))
        self.check_positive("num_trees")
        if not (isinstance(self.reg_lambda, int | float) and 0 <= self.reg_lambda < math.inf):
            raise InputError(f"reg_lambda={self.reg_lambda!r} is out of range: it is a finite number of at least 0")
        self.check_choice("freeze", (None, "norm", "angle"))
        if self.freeze and not self.quasi:
            raise InputError(
                f"freeze={self.freeze!r} needs quasi=True: GOFT's blocks are rotations, with nothing to hold"
            )
        for name, kind in (("permutations", int), ("transposed", bool)):
            given = getattr(self, name)
            fits = isinstance(given, list) and len(given) == self.num_trees
            if given is not None and not (fits and all(type(v) is kind and v >= 0 for v in given)):
                rule = "a whole number of at least 0" if kind is int else "true or false"
                raise InputError(f"{name}={given!r} is out of range: {rule} for each of num_trees={self.num_trees}")

    @property
    def layout(self) -> list[tuple[int, bool]]:
        """What each tree is, as :func:`orthotune.ops.givens.apply` takes it."""
        powers = self.permutations or range(self.num_trees)
        return list(zip(powers, self.transposed or [False] * self.num_trees, strict=True))


class GOFTLayer(AdapterLayer):
    """Rotations on a layer's input coordinates."""

    method = "goft"
    combinations: ClassVar[dict[str, Combination]] = {
        "compose": Compose(must_agree=("quasi", "scale", "freeze")),
        "geodesic": Geodesic(must_agree=("quasi", "scale", "freeze", "num_trees", "permutations", "transposed")),
    }
    adapter_layer_names: tuple[str, ...] = ("goft_theta", "goft_block", "goft_scale")

    @classmethod
    def check(cls, config: GOFTConfig, module_name: str, in_features: int, out_features: int) -> None:
        if in_features < 2:
            raise InputError(
                f"layer {module_name!r} has width in_features={in_features}: a rotation needs at least 2 coordinates; "
                "name the layer in exclude_modules"
            )

    def create_parameters(self, adapter_name: str, config: GOFTConfig) -> None:
        count = config.num_trees * givens.num_rotations(self.in_features)
        random = config.init_weights is False
        if config.quasi:
            block = givens.identity_blocks(count)
            self.goft_block[adapter_name] = nn.Parameter(block + 0.2 * torch.randn_like(block) if random else block)
        else:
            theta = torch.zeros(count)
            self.goft_theta[adapter_name] = nn.Parameter(theta.uniform_(-math.pi, math.pi) if random else theta)
        if config.scale is not None:
            scale = torch.ones(self.out_features if config.scale == "output" else self.in_features)
            self.goft_scale[adapter_name] = nn.Parameter(scale + 0.2 * torch.randn_like(scale) if random else scale)

    def rotations(self, adapter: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return an adapter's angles (num_trees * (D - 1),) or 2x2 blocks (num_trees * (D - 1), 2, 2)."""
        config = self.adapter_options[adapter]
        if config.quasi:
            return givens.hold(self.parameter("goft_block", adapter, dtype), config.freeze)
        return self.parameter("goft_theta", adapter, dtype)

    def adapt_matrix(self, matrix: Tensor, adapter: str) -> Tensor:
        config = self.adapter_options[adapter]
        if config.scale == "input":
            matrix = matrix * self.parameter("goft_scale", adapter, matrix.dtype)
        matrix = givens.apply(matrix, self.rotations(adapter, matrix.dtype), layout=config.layout, transpose=True)
        if config.scale == "output":
            matrix = matrix * self.parameter("goft_scale", adapter, matrix.dtype)[:, None]
        return matrix

    def defect(self, adapter: str) -> float:
        """Return max |R^T R - I|."""
        config = self.adapter_options[adapter]
        return givens.defect(self.rotations(adapter), self.in_features, layout=config.layout)


class GOFTLinear(GOFTLayer, LinearHost):
    """Rotates the activations, x W* = (x R) W, O(D) a vector; or the weight, where that is less work."""

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        x = x.to(layer_dtype(x))
        if len(adapters) == 1 and self._is_one_tree(adapters[0]) and self.is_fusable(x):
            base = self.get_base_layer()
            return rotated_linear(x, self.to_matrix(base.weight), base.bias, self.rotations(adapters[0], x.dtype))
        for adapter in reversed(adapters):
            config = self.adapter_options[adapter]
            x = givens.apply(x, self.rotations(adapter, x.dtype), layout=config.layout)
            if config.scale == "input":
                x = x * self.parameter("goft_scale", adapter).to(x.dtype)
        scales = [a for a in adapters if self.adapter_options[a].scale == "output"]
        if not scales:
            return self.run_base(x, *args, **kwargs)
        y = self.base_linear(x)
        for adapter in scales:
            y = y * self.parameter("goft_scale", adapter).to(y.dtype)
        bias = self.get_base_layer().bias
        return y if bias is None else y + bias.to(y.dtype)

    def _is_one_tree(self, adapter: str) -> bool:
        config = self.adapter_options[adapter]
        return config.layout == [(0, False)] and config.scale is None


class GOFTQuantisedLinear(QuantisedHost, GOFTLinear):
    """Rotates the activations, before a call of the layer."""


class GOFTConv2d(GOFTLayer, Conv2dHost):
    """Rotates each kernel laid flat, on the weight side."""


class GOFTModel(AdapterModel):
    """Puts GOFT or qGOFT adapters on a model, and adds qGOFT's penalty to the loss the model returns.

    Args:
        model: the model to adapt.
        config: a :class:`GOFTConfig`.
        adapter_name: name of the adapter.
        low_cpu_mem_usage: make empty adapter weights on the meta device.
    """

    prefix: str = "goft_"
    tuner_layer_cls = GOFTLayer
    layer_classes: ClassVar[dict[type[AdapterLayer], type[AdapterLayer]]] = {
        LinearHost: GOFTLinear,
        QuantisedHost: GOFTQuantisedLinear,
        Conv2dHost: GOFTConv2d,
    }

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """See PEFT; from a qGOFT adapter on, the loss in the model's output has the penalty in it."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        hooked = any(hook is _penalty_hook for hook in model._forward_hooks.values())
        if self.peft_config[adapter_name].quasi and not hooked:
            # on the model itself, since PeftModel.forward without a task type does not pass through the tuner's
            model.register_forward_hook(_penalty_hook, with_kwargs=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See PEFT; before 0.19 its own calls ``self.model.forward``, past the hook that adds the penalty."""
        return self.model(*args, **kwargs)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model: nn.Module = super()._unload_and_optionally_merge(*args, **kwargs)
        for key, hook in list(model._forward_hooks.items()):
            if hook is _penalty_hook:
                del model._forward_hooks[key]
                model._forward_hooks_with_kwargs.pop(key, None)
        return model


def _penalty_hook(model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    value, labels, items = penalty(model), kwargs.get("labels"), kwargs.get("num_items_in_batch")
    if value is not None and items is not None and isinstance(labels, Tensor):
        # transformers' Trainer adds up the losses of micro-batches and processes, each a share of the whole batch's
        value = value * ((labels != IGNORED).sum() / items).to(value.device)
    return add_to_loss(output, value, labels is not None)


def penalty(model: nn.Module) -> Tensor | None:
    """Return the summed penalty of the active, enabled, unmerged qGOFT adapters, or None where there is none."""
    blocks: dict[tuple[float, torch.device, torch.dtype], list[Tensor]] = {}
    for layer in model.modules():
        if not isinstance(layer, GOFTLayer) or layer.merged or layer.disable_adapters:
            continue
        for adapter in layer.own_adapters(layer.active_adapters):
            config = layer.adapter_options[adapter]
            if config.quasi and config.freeze != "angle":  # whose columns are orthogonal
                own = layer.rotations(adapter)
                blocks.setdefault((config.reg_lambda, own.device, own.dtype), []).append(own)
    total: Tensor | None = None
    for (strength, _, _), parts in blocks.items():  # all layers at once: a handful of operations, not as many per layer
        value = strength * givens.penalty(torch.cat(parts))
        total = value if total is None else total + value.to(total.device)
    return total


register("goft", GOFTConfig, GOFTModel)
