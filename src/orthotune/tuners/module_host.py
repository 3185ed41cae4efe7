"""Adapters around a module, of any kind, rather than in a weight: they change how it is run and cannot be merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from orthotune.errors import InputError
from orthotune.tuners.blocks import width_of
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.fused import is_targeted
from orthotune.tuners.layer import AdapterLayer, base_of
from orthotune.tuners.model import AdapterModel
from orthotune.tuners.traversal import modules_outside


@dataclass
class ModuleConfig(AdapterConfig):
    """Fields common to the methods that wrap modules: AdapterConfig's, of which two have one value only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("bias", ("none", "all"))
        self.check_choice("fan_in_fan_out", (False,))


class ModuleHost(AdapterLayer):
    """Any module that maps (..., D) to (..., D); in_features = out_features = D.

    A method supplies :meth:`adapted_forward`, and says in ``not_mergeable`` why there is no merging.
    """

    not_mergeable: ClassVar[str]

    @classmethod
    def matrix_shape(cls, base_layer: Any) -> tuple[int, int]:
        width = width_of(base_layer)
        assert width is not None, "the model checks its targets before it wraps them"
        return width, width

    def merge_obstacle(self, adapter: str) -> str | None:
        """Say why no adapter can be merged, and what to do instead."""
        return (
            f"{self.not_mergeable}; keep the adapter beside the model (save_pretrained), or call unload() for the "
            "model without it"
        )

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """See PEFT, which looks for one weight of the base layer; here the first of its parameters stands for it."""
        like = next((p for p in self.get_base_layer().parameters() if p.is_floating_point()), None)
        for store in (getattr(self, name) for name in self.adapter_layer_names):
            if adapter_name in store and like is not None and store[adapter_name].device.type != "meta":
                store[adapter_name] = nn.Parameter(store[adapter_name].data.to(device or like.device, like.dtype))


class ModuleModel(AdapterModel):
    """Base of the tuners that wrap modules; a method supplies its layer class and finds its modules by itself."""

    tuner_layer_cls: type[ModuleHost]

    def default_targets(self, model: nn.Module) -> list[str]:
        """Return the names of the modules to wrap where the configuration names none, or raise InputError."""
        raise NotImplementedError

    def check_module(self, model: nn.Module, name: str) -> None:
        """Raise UnsupportedLayerError unless the module ``name`` of ``model`` is one to wrap."""
        raise NotImplementedError

    def targets(self, peft_config: Any, model: nn.Module) -> list[str]:
        """Return the names of the targeted modules, in the model's order."""
        return [name for name, _ in modules_outside(model, BaseTunerLayer) if is_targeted(peft_config, name)]

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        """See PEFT, which would look the targets up by the type of the model."""
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Find the targeted modules, and check every one before any is touched."""
        wanted = peft_config.target_modules
        if wanted is None:
            peft_config.target_modules = set(self.default_targets(model))
        names = self.targets(peft_config, model)
        if not names:
            raise InputError(
                f"target_modules={wanted!r}, layers_to_transform={peft_config.layers_to_transform!r} and "
                f"exclude_modules={peft_config.exclude_modules!r} leave nothing to adapt; modules of this model that "
                f"can be adapted: {', '.join(self.default_targets(model))}"
            )
        for name in names:
            self.check_module(model, name)
            width, _ = self.tuner_layer_cls.matrix_shape(base_of(model.get_submodule(name)))
            self.tuner_layer_cls.check(peft_config, name, width, width)

    @classmethod
    def layer_class(cls, module: nn.Module, name: str) -> type[AdapterLayer]:
        """Return the one layer class there is."""
        return cls.tuner_layer_cls

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """See PEFT, whose own also hands over the one weight that it takes a layer to have."""
        setattr(parent, child_name, new_module)
