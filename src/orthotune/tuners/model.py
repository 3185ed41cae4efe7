"""The tuner: finds the layers that a configuration targets, checks all of them, then puts adapters on them."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from orthotune.errors import InputError
from orthotune.targets.resolve import resolve_config
from orthotune.targets.sets import is_set
from orthotune.tuners import mixed_batch
from orthotune.tuners.combining import add_weighted_adapter
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.fused import (
    FusedProjection,
    is_targeted,
    part_names,
    split_fused_projections,
    targeted_parts,
)
from orthotune.tuners.layer import AdapterLayer, base_of
from orthotune.tuners.quantisers import as_quantised
from orthotune.tuners.supported import UnsupportedLayerError, check_is_called, host_of
from orthotune.tuners.traversal import modules_outside

# queries and values, as PEFT does for LoRA, with the vision transformers that its table leaves out
_QUERY_VALUE = ["q", "v", "query", "value", "q_proj", "v_proj"]
DEFAULT_TARGETS: dict[str, list[str] | str] = {
    **dict.fromkeys(("vit", "deit", "beit", "swin", "swinv2", "dinov2", "vit_mae", "clip", "siglip"), _QUERY_VALUE),
    **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
}
# PEFT's words where target_modules matches nothing; the second where modules_to_save or exclude_modules match something
_UNMATCHED = ("not found in the base model", "No modules were targeted")


class AdapterModel(BaseTuner):
    """Base of the tuners; a method supplies its layer classes, one for each host it supports."""

    layer_classes: ClassVar[dict[type[AdapterLayer], type[AdapterLayer]]]
    target_module_mapping = DEFAULT_TARGETS

    def _prepare_model(self, peft_config: AdapterConfig, model: nn.Module) -> None:
        """Check every targeted layer before any is touched, then split the fused ones."""
        _maybe_include_all_linear_layers(peft_config, model)
        targets = {
            name: module for name, module in modules_outside(model, BaseTunerLayer) if is_targeted(peft_config, name)
        }
        for name, module in targets.items():
            if not isinstance(module, nn.Identity):
                self._check_layer(peft_config, model, name)
        if targets and all(isinstance(module, nn.Identity) for module in targets.values()):
            raise UnsupportedLayerError(
                f"target_modules matches only placeholders (nn.Identity) in this model: {', '.join(targets)}"
            )
        for name, parts in targeted_parts(model, peft_config).items():
            self._check_layer(peft_config, model, name, parts=len(parts))
        split_fused_projections(model, peft_config)

    def _check_layer(self, peft_config: AdapterConfig, model: nn.Module, name: str, parts: int = 1) -> None:
        module = model.get_submodule(name)
        layer_cls = self.layer_class(module, name)
        check_is_called(model.get_submodule(name.rpartition(".")[0]), name)
        in_features, out_features = layer_cls.matrix_shape(base_of(module))
        layer_cls.check(peft_config, name, in_features, out_features // parts)

    @classmethod
    def layer_class(cls, module: nn.Module, name: str) -> type[AdapterLayer]:
        """Return the adapter layer class for a base layer, or raise UnsupportedLayerError naming it."""
        if isinstance(module, FusedProjection):
            raise UnsupportedLayerError(
                f"layer {name!r} is adapted in parts ({', '.join(module.parts)}) by another adapter; target the parts"
            )
        if isinstance(module, cls.tuner_layer_cls):
            return type(module)
        host = host_of(module, name)
        if host not in cls.layer_classes:
            supported = ", ".join(sorted(h.__name__.removesuffix("Host") for h in cls.layer_classes))
            method = cls.__name__.removesuffix("Model")
            raise UnsupportedLayerError(
                f"layer {name!r} is a {type(base_of(module)).__name__}, which {method} does not adapt (it does: "
                f"{supported}); narrow target_modules or name the layer in exclude_modules"
            )
        return cls.layer_classes[host]

    def new_layer(self, module: nn.Module, name: str) -> AdapterLayer:
        """Return an adapter layer, without adapters yet, around a base layer."""
        return self.layer_class(module, name)(module, name)

    @staticmethod
    def _check_target_module_exists(peft_config: AdapterConfig, key: str) -> Any:
        return is_targeted(peft_config, key)

    def _create_and_replace(
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, nn.Identity):
            return  # a layer this model leaves out, such as the norm of timm's patch embedding
        shared: dict[Any, AdapterLayer] = self.__dict__.setdefault("_shared", {})
        if isinstance(target, self.tuner_layer_cls):
            target.shared = shared
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.new_layer(target, current_key)
        layer.shared = shared
        if peft_config.fan_in_fan_out and isinstance(layer.get_base_layer(), nn.Linear):
            warnings.warn(
                "fan_in_fan_out is set to True but the target module is `torch.nn.Linear`. Setting fan_in_fan_out to "
                "False.",
                stacklevel=2,
            )
        peft_config.fan_in_fan_out = getattr(layer, "fan_in_fan_out", False)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """See PEFT; InputError before any layer is changed if an adapter has no merged form."""
        self._check_mergeable(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_mergeable(adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _check_mergeable(self, adapter_names: list[str] | None) -> None:
        for layer in self.model.modules():
            if isinstance(layer, AdapterLayer):
                layer.check_mergeable(layer.own_adapters(adapter_names or layer.active_adapters))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """See PEFT, which when unloading gives the base layer its own ``weight`` anew; not every layer has one."""
        own = isinstance(child, AdapterLayer) and new_module is child.get_base_layer()
        if own or isinstance(child, AuxiliaryTrainingWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """See PEFT, which calls this around a forward pass: takes ``adapter_names``, one for each sample."""
        with mixed_batch.adapter_names(self, kwargs.pop("adapter_names", None), kwargs.get("num_beams")):
            yield

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str | None = None,
        modules_to_save_from: str | None = None,
    ) -> None:
        """Add an adapter that combines others; it is neither active nor trainable until ``set_adapter`` makes it so.

        A layer that only some of the adapters have takes the others for no-ops. Weights are finite numbers of either
        sign. What a combination means, W* being the merged weight (docs/combining.md has it in full):

        * RLRR "linear" (default): left = sum w_i left_i, right = sum w_i right_i (supp. H of the paper). That does not
          add up the changes of W, and weight -1 alone changes W as weight 1 does: it negates both factors.
        * RLRR, AOFT "cat" (AOFT's default): W* - W is exactly sum w_i (W*_i - W).
        * GOFT, qGOFT "compose" (default): R = ... R_2^{w_2} R_1^{w_1} with weights +1 and -1 (the inverse), the first
          adapter acting on W first, as when several adapters are active in this order.
        * GOFT, qGOFT "geodesic": sum w_i t_i in each plane; of qGOFT's blocks the angles and log-stretches of the polar
          form are summed.

        Args:
            adapters: names of adapters of this model; one is enough, and one may occur several times.
            weights: as many numbers.
            adapter_name: name of the new adapter.
            combination_type: one of the above; by default the method's first.
            modules_to_save_from: the adapter whose modules trained whole (``modules_to_save``, such as a head) the new
                one gets a copy of. Needed only if several of ``adapters`` have the same module; these are not combined.

        Raises InputError, with the model as it was: unknown or taken name, weights that do not fit, an unknown
        combination_type, configurations that cannot be combined, a layer that the result does not fit.
        """
        add_weighted_adapter(self, adapters, weights, adapter_name, combination_type, modules_to_save_from)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """See PEFT; a named set of target modules becomes names, and an error about names gives the nearest ones."""
        config = self.peft_config[adapter_name]
        if config.target_modules != "all-linear" and is_set(config.target_modules):
            resolve_config(model, config)
        for module in model.modules():
            quantised = as_quantised(module)
            if quantised is not None:
                quantised.prepare()
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except ValueError as error:
            targets = self.peft_config[adapter_name].target_modules
            if isinstance(error, InputError) or not any(words in str(error) for words in _UNMATCHED):
                raise
            raise type(error)(f"{error} {_near_names(model, targets)}") from None


def _near_names(model: nn.Module, targets: set[str] | list[str] | str) -> str:
    """Say which of the model's layers have names like the targets, or which last names there are."""
    supported = [name for name, module in model.named_modules() if name and _is_supported(module)]
    names = sorted({name.rpartition(".")[2] for name in (*supported, *part_names(model))})
    wanted = [targets] if isinstance(targets, str) else sorted(targets)
    near = {match for target in wanted for match in difflib.get_close_matches(target.rpartition(".")[2], names)}
    if near:
        return f"Near names in this model: {', '.join(sorted(near))}."
    return f"Layers of this model that can be adapted end in: {', '.join(names) or '(none)'}."


def _is_supported(module: nn.Module) -> bool:
    try:
        host_of(module, "")
    except UnsupportedLayerError:
        return False
    return True
