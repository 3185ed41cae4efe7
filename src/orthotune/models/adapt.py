"""Applying a method to a classifier, and saving and loading what was trained."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.fields import adapter_values
from orthotune.methods import get_method
from orthotune.models.build import Classifier
from orthotune.models.weights import check_finite, read_state_dict
from orthotune.targets.resolve import target_modules
from orthotune.targets.sets import is_set
from orthotune.tuners.layer import AdapterLayer

if TYPE_CHECKING:
    from peft import PeftConfig

#: What the methods without an adapter (linear, full) save: the tensors that training changed.
TRAINED_FILE = "model.safetensors"


@dataclasses.dataclass
class AdaptedModel:
    """A classifier under a method. ``module`` is the PeftModel, or the base model where there is no adapter."""

    classifier: Classifier
    method: str
    module: nn.Module

    def logits(self, images: Any) -> Tensor:
        """Logits (N, classes) for normalised images (N, 3, H, W); of a language model what it gives for tokens."""
        return self.classifier.logits(self.module, images)

    def trained_tensors(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name (not copies): parameters, and buffers next to them."""
        tensors: dict[str, Tensor] = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        persistent = self.module.state_dict().keys()
        tensors.update((n, b) for n, b in self.module.named_buffers() if n in persistent and self._trains_around(n))
        return tensors

    def _trains_around(self, buffer: str) -> bool:
        """Whether every parameter next to a buffer (a running statistic) is trained, so that it changes too."""
        name = buffer.rpartition(".")[0]
        while name and next(self.module.get_submodule(name).parameters(), None) is None:
            name = name.rpartition(".")[0]
        return all(p.requires_grad for p in self.module.get_submodule(name).parameters())

    def load_trained_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Copy ``state`` (as ``trained_tensors`` gives) into the model."""
        own = self.trained_tensors()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())[:3]
            raise InputError(f"the saved state is of another model or method: tensors differ ({', '.join(odd)})")
        with torch.no_grad():
            for name, tensor in own.items():
                if tensor.shape != state[name].shape:
                    shapes = f"{tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
                    raise InputError(f"the saved state is of another model or method: {name} is {shapes}")
                tensor.copy_(state[name])

    def merge_obstacle(self) -> str | None:
        """Say why there is no plain model with what was trained in its weights; None if there is one."""
        if getattr(get_method(self.method).config_class(), "changes_architecture", False):
            return "it changes the architecture, so timm and transformers have no plain model to load its weights"
        layers = [layer for layer in self.module.modules() if isinstance(layer, AdapterLayer)]
        return next((why for layer in layers for a in layer.adapter_options if (why := layer.merge_obstacle(a))), None)

    def train(self) -> None:
        """Training mode, with the running statistics of frozen batch norms left alone."""
        self.module.train()
        for name, module in self.module.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not self._trains_around(f"{name}.running_mean"):
                module.eval()


def adapt(classifier: Classifier, method: str, values: Mapping[str, Any], seed: int = 0) -> AdaptedModel:
    """Freeze ``classifier`` and apply ``method`` with the adapter fields ``values``; the head stays trainable.

    InputError for fields, types, ranges or target modules that cannot be used.
    """
    entry = get_method(method)
    arguments = adapter_values(method, values)
    torch.manual_seed(seed)
    if not entry.is_adapter:
        selection: Any = entry.config_class()(**arguments)
        selection.apply(classifier)
        return AdaptedModel(classifier, method, classifier.module)
    arguments["target_modules"] = arguments.get("target_modules") or entry.targets
    layers, pattern = arguments.get("layers_to_transform"), arguments.get("layers_pattern")
    for field in ("target_modules", *(name for name in entry.defaults if name.endswith("_modules"))):
        if is_set(arguments[field]):
            arguments |= {"layers_to_transform": None, "layers_pattern": None} if layers is not None else {}
            arguments[field] = target_modules(
                classifier.module,
                arguments[field],
                exclude=arguments.get("exclude_modules"),
                layers=layers,
                layers_pattern=pattern,
                modules_to_save=arguments.get("modules_to_save"),
                placeholders=not entry.is_own,
            )
    arguments["modules_to_save"] = sorted({*(arguments.get("modules_to_save") or ()), *classifier.head})
    try:
        config = entry.config_class()(**arguments)
        module = _peft_model(classifier.module, config)
    except InputError:
        raise
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise InputError(f"method {method}: {' '.join(str(error).split())}") from error
    return AdaptedModel(classifier, method, module)


def _peft_model(module: nn.Module, config: Any) -> nn.Module:
    from peft import get_peft_model

    from orthotune.tuners.fused import split_fused_projections

    split_fused_projections(module, config)
    with _known_warnings():
        return get_peft_model(module, config)  # type: ignore[arg-type]


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Pass over what PEFT warns of in its own methods although all is well."""
    with warnings.catch_warnings():
        # BOFT tries to compile a CUDA kernel, and goes on without
        warnings.filterwarnings("ignore", category=UserWarning, module="peft.tuners.boft")
        # LN tuning knows its modules by type, and takes those of timm and transformers as well
        warnings.filterwarnings("ignore", "Unsupported layer type .*[nN]orm", UserWarning)
        yield


def save_trained(model: AdaptedModel, folder: Path) -> None:
    """Write what was trained into ``folder``: PEFT's format for an adapter, else ``model.safetensors``."""
    check_finite(model.trained_tensors(), "the trained model")
    if get_method(model.method).is_adapter:
        with warnings.catch_warnings():
            # PEFT looks for a base model's config on the hub; a timm model has none.
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            model.module.save_pretrained(str(folder), save_embedding_layers=False)  # type: ignore[operator]
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.detach().cpu().contiguous() for n, t in model.trained_tensors().items()}
    save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"})


def load_trained(classifier: Classifier, method: str, values: Mapping[str, Any], folder: Path) -> AdaptedModel:
    """The classifier with what ``save_trained`` wrote of ``method`` with the settings ``values``.

    InputError for another method or architecture, or NaN.
    """
    entry = get_method(method)
    if not entry.is_adapter:
        model = adapt(classifier, method, values)
        model.load_trained_tensors(read_state_dict(folder / TRAINED_FILE))
        check_finite(model.trained_tensors(), str(folder / TRAINED_FILE))
        return model
    config = adapter_config(folder)
    if not isinstance(config, entry.config_class()):
        raise InputError(
            f"{str(folder)!r} holds a {config.peft_type.value} adapter, but the run says method {method!r}"
        )
    return load_adapter(classifier, method, config, folder)


def adapter_config(folder: Path) -> PeftConfig:
    """The settings of the adapter saved in ``folder``; InputError if there is none, or of a type that PEFT lacks."""
    from peft import PeftConfig

    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{str(folder)!r} holds no adapter (adapter_config.json is missing)")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the adapter_config.json in {str(folder)!r} cannot be read: {error}") from error


def load_adapter(classifier: Classifier, method: str, config: PeftConfig, folder: Path) -> AdaptedModel:
    """The classifier with the adapter saved in ``folder``, whose settings are ``config``; InputError as above."""
    from peft import PeftModel

    from orthotune.tuners.fused import split_fused_projections

    check_finite(read_state_dict(folder / "adapter_model.safetensors"), str(folder))
    try:
        split_fused_projections(classifier.module, config)
        with _known_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            module = PeftModel.from_pretrained(classifier.module, str(folder), config=config)
    except (ValueError, RuntimeError, KeyError, UserWarning) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"adapter {str(folder)!r} does not fit {classifier.name}: {reason}") from error
    return AdaptedModel(classifier, method, module)
