"""Visual prompt tuning, deep and shallow, as a PEFT tuner, with AOFT's prompts generated from one vector.

Sources: Jia et al., "Visual Prompt Tuning", ECCV 2022 (arXiv 2203.12119), and the authors' code, KMnP/vpt; Yang et al.,
ICCV 2025 (arXiv 2507.13260) for the prompts that are the rows of AO(q)^T.

A wrapped block is given T more tokens than the model hands it, (B, N + T, D), and hands on N. The authors put the
prompts after the class token, here they go last: nothing inside a block depends on a token's place where the position
embeddings are absolute and added before the first block, so the result is the same, and every index the model uses
(the class token first, then the patches) stays valid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.ops import approx_orthogonal
from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.blocks import block_lists, check_takes_more_tokens
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.module_host import ModuleConfig, ModuleHost, ModuleModel


@dataclass
class VPTConfig(ModuleConfig):
    """Configuration of visual prompt tuning (Jia et al., ECCV 2022, arXiv 2203.12119).

    Deep: every block has ``vpt_prompts`` (T, D) of its own, seen by that block only. Shallow: the first block's T
    tokens go through all blocks. With ``projection="approx_orthogonal"`` (AOFT) a block has ``vpt_vector`` (D,)
    instead, and its T <= D tokens are the rows of AO(q)^T.

    The targets are the model's transformer blocks, found where ``target_modules`` is None. Once the adapter is on a
    model, ``target_modules`` lists the wrapped blocks: the first and the last one for shallow prompts. Prompts take
    part in the attention from the start, so a fresh adapter is not a no-op; they cannot be merged, and cost T tokens
    at inference. What a model records from inside its blocks (transformers' ``output_hidden_states`` and
    ``output_attentions``) has the prompts in it, last.

    Raises InputError, a ValueError, for a value out of range.
    """

    num_tokens: int = field(
        default=50,
        metadata={"help": "Number of prompt tokens T; in the paper tuned by task."},
    )
    deep: bool = field(
        default=True,
        metadata={"help": "VPT-Deep: prompts in every block. Off: VPT-Shallow, in the first block's input."},
    )
    projection: Literal["dense", "approx_orthogonal"] = field(
        default="dense",
        metadata={"help": "'dense': T x D free numbers. 'approx_orthogonal': generated from one vector of D (AOFT)."},
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the prompts, in training."})
    init_weights: bool = field(
        default=True,
        metadata={"help": "True: the published random start, at the scale of a patch embedding. False: unit normal."},
    )

    def __post_init__(self) -> None:
        self.peft_type = peft_type("VPT")
        super().__post_init__()
        self.check_positive("num_tokens")
        self.check_choice("deep", (True, False))
        self.check_choice("projection", ("dense", "approx_orthogonal"))
        self.check_choice("init_weights", (True, False))
        self.check_fraction("dropout")
        if self.layers_pattern is not None:
            raise InputError(f"layers_pattern={self.layers_pattern!r} has no meaning here: the targets are the blocks")
        if self.layers_to_transform is not None and not self.deep:
            raise InputError(
                f"layers_to_transform={self.layers_to_transform!r} needs deep=True: shallow prompts go in before the "
                "first block and out after the last; name those blocks in target_modules instead"
            )

    @property
    def starts_as_no_op(self) -> bool:
        """False: fresh prompts take part in the attention."""
        return False


class VPTLayer(ModuleHost):
    """A transformer block that is given prompts.

    Args:
        base_layer: the block.
        module_name: its name.
        patch_features: count of numbers in one patch of the image, for the scale of the start.
    """

    method = "vpt"
    adapter_layer_names: tuple[str, ...] = ("vpt_prompts", "vpt_vector")
    not_mergeable = "prompts are tokens that the blocks attend to, not part of any weight, and cost time at inference"

    def __init__(self, base_layer: nn.Module, module_name: str, patch_features: int) -> None:
        super().__init__(base_layer, module_name)
        self.patch_features = patch_features

    @classmethod
    def check(cls, config: VPTConfig, module_name: str, in_features: int, out_features: int) -> None:
        if config.projection == "approx_orthogonal" and config.num_tokens > in_features:
            raise InputError(
                f"num_tokens={config.num_tokens} is out of range for {module_name!r}: its width is D = {in_features}, "
                "and a vector of D numbers generates 1 to D prompts"
            )

    def is_first(self, config: VPTConfig) -> bool:
        """Whether the prompts go in here."""
        return config.deep or self.module_name == _ends(config)[0]

    def is_last(self, config: VPTConfig) -> bool:
        """Whether the prompts come out here."""
        return config.deep or self.module_name == _ends(config)[-1]

    def create_parameters(self, adapter_name: str, config: VPTConfig) -> None:
        if not self.is_first(config):
            return
        if config.projection == "approx_orthogonal":
            vector = approx_orthogonal.random_unit(self.in_features)
            scale = 1.0 if config.init_weights else math.sqrt(self.in_features)
            self.vpt_vector[adapter_name] = nn.Parameter(scale * vector)
            return
        prompts = torch.empty(config.num_tokens, self.in_features)
        # Xavier's uniform start of a patch embedding, as in the authors' code
        bound = math.sqrt(6 / (self.patch_features + self.in_features))
        prompts = prompts.uniform_(-bound, bound) if config.init_weights else prompts.normal_()
        self.vpt_prompts[adapter_name] = nn.Parameter(prompts)

    def prompts(self, adapter: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return an adapter's tokens (T, D), at least float32; differentiable in its parameters."""
        config = self.adapter_options[adapter]
        if config.projection == "dense":
            return self.parameter("vpt_prompts", adapter, dtype)
        return approx_orthogonal.dense(self.parameter("vpt_vector", adapter, dtype), config.num_tokens).T

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Any:
        self._check_call(x, args, kwargs)
        options = [self.adapter_options[adapter] for adapter in adapters]
        entering = [i for i, config in enumerate(options) if self.is_first(config)]
        # what stays for later blocks before what leaves after this one: the latter is then at the end
        entering.sort(key=lambda i: self.is_last(options[i]))
        tokens = [x]
        for i in entering:
            rows = self.prompts(adapters[i], x.dtype).to(x).expand(len(x), -1, -1)
            tokens.append(F.dropout(rows, options[i].dropout, self.training))
        joined = torch.cat(tokens, dim=1)
        leaving = sum(config.num_tokens for config in options if self.is_last(config))
        return self._without(self.base_layer(joined, *args, **kwargs), joined, leaving)

    def _without(self, output: Any, joined: Tensor, count: int) -> Any:
        """Return a block's output, a tensor or a tuple that begins with one, without its last ``count`` tokens."""
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor) or hidden.shape != joined.shape:
            raise InputError(
                f"block {self.module_name!r} turned (B, N, D) = {tuple(joined.shape)} into "
                f"{tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__}; prompts need blocks "
                "that keep the shape"
            )
        hidden = hidden[:, : joined.shape[1] - count]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _check_call(self, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if x.ndim != 3 or x.shape[-1] != self.in_features:
            raise InputError(
                f"block {self.module_name!r} got an input of shape {tuple(x.shape)}; prompts go into a sequence "
                f"(B, N, {self.in_features})"
            )
        others = {**{f"argument {i}": value for i, value in enumerate(args, 2)}, **kwargs}
        for name, value in others.items():
            if value is True and name == "is_causal":
                raise InputError(f"block {self.module_name!r} got is_causal=True; prompts need full attention")
            parts = value if isinstance(value, tuple | list) else (value,)
            if any(isinstance(part, Tensor) for part in parts):
                raise InputError(
                    f"block {self.module_name!r} got {name}, a mask or a position for each token, which prompts have "
                    "not; run the model without it"
                )

    def _mixed_forward(self, x: Tensor, names: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        lengths = {name: self._kept_tokens(name) for name in names}
        if len(set(lengths.values())) > 1 and not self.disable_adapters:
            raise InputError(
                f"adapter_names mixes shallow prompts of several lengths in one batch ({lengths}), and all samples "
                "need as many tokens: give adapters of equal num_tokens, or run each on its own"
            )
        return super()._mixed_forward(x, names, *args, **kwargs)

    def _kept_tokens(self, adapter: str) -> int:
        config = self.adapter_options.get(adapter)
        return 0 if config is None or config.deep else config.num_tokens


class VPTModel(ModuleModel):
    """Puts prompts on the blocks of a vision transformer.

    Args:
        model: the model to adapt.
        config: a :class:`VPTConfig`.
        adapter_name: name of the adapter.
        low_cpu_mem_usage: make empty adapter weights on the meta device.
    """

    prefix: str = "vpt_"
    tuner_layer_cls = VPTLayer

    def default_targets(self, model: nn.Module) -> list[str]:
        """Return the names of the blocks of the model's one list of them."""
        lists = block_lists(model)
        if len(lists) != 1:
            found = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists.items()) or "none"
            raise InputError(
                f"prompts go into one list of equal transformer blocks, and this {type(model).__name__} has: {found}; "
                r"name the blocks in target_modules, as names or as a regular expression such as 'encoder\.layers\.\d+'"
            )
        return next(iter(lists.values()))

    def check_module(self, model: nn.Module, name: str) -> None:
        check_takes_more_tokens(model, name)

    def targets(self, peft_config: VPTConfig, model: nn.Module) -> list[str]:
        names = super().targets(replace(peft_config, layers_to_transform=None), model)
        wanted = peft_config.layers_to_transform
        if wanted is None:
            return names
        indices = {wanted} if isinstance(wanted, int) else set(wanted)
        return [name for name in names if int((re.findall(r"\d+$", name) or [-1])[0]) in indices]

    def _prepare_model(self, peft_config: VPTConfig, model: nn.Module) -> None:
        """Find and check the blocks, and list those to wrap, in order, in the configuration."""
        super()._prepare_model(peft_config, model)
        names = self.targets(peft_config, model)
        if not peft_config.deep:
            parents = {name.rpartition(".")[0] for name in names}
            if len(parents) > 1:
                raise InputError(
                    f"shallow prompts go through one list of blocks, and target_modules has those of "
                    f"{', '.join(sorted(parents))}"
                )
            names = list(dict.fromkeys((names[0], names[-1])))
            for other in self.peft_config.values():
                if other is peft_config or not isinstance(other, VPTConfig) or other.deep or _ends(other) == names:
                    continue
                raise InputError(
                    f"shallow prompts from {names[0]!r} to {names[-1]!r} do not go with those of another adapter, "
                    f"from {_ends(other)[0]!r} to {_ends(other)[-1]!r}: let both go through the same blocks"
                )
        peft_config.target_modules = names

    @staticmethod
    def _check_target_module_exists(peft_config: VPTConfig, key: str) -> bool:
        return key in _ends(peft_config)

    def new_layer(self, module: nn.Module, name: str) -> AdapterLayer:
        width, _ = VPTLayer.matrix_shape(module)
        return VPTLayer(module, name, _patch_features(self.model, width))


def _ends(config: VPTConfig) -> list[str]:
    """Return the names of the wrapped blocks, in order, of a configuration that is on a model."""
    assert isinstance(config.target_modules, list), "the model lists the blocks it wraps"
    return config.target_modules


def _patch_features(model: nn.Module, width: int) -> int:
    """Return the count of numbers in a patch: inputs of one output of the convolution that embeds it; D without one."""
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and m.out_channels == width)
    found = next(convolutions, None)
    return width if found is None else found.weight[0].numel()


register("vpt", VPTConfig, VPTModel)
