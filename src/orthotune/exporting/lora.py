"""A plain LoRA checkpoint of any adapter: what PEFT, and much that serves models, loads without this package.

An adapter that changes a weight W to W* is written as factors of W* - W, exact where the method has them (AOFT, LoRA)
and the best of a given rank otherwise. What a LoRA does not hold is written as PEFT's further fields: shifts of biases
as the bias of B, adapted norms and trained heads as whole modules.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import InputError
from orthotune.exporting.changes import WRAPPERS, Change, adapted_norms, linear_changes, plain_modules
from orthotune.exporting.low_rank import LowRank, check_accuracy, low_rank
from orthotune.tuners.fused import is_targeted

_PREFIX = "base_model.model."
Extras = Literal["keep", "refuse", "drop"]


@dataclass(frozen=True)
class LoraError:
    """How far one layer's LoRA is from the adapter's change of the weight.

    ``norm`` is the change's Frobenius norm, ``residual`` that of the difference, ``rank`` the LoRA's.
    """

    layer: str
    rank: int
    norm: float
    residual: float

    @property
    def relative(self) -> float:
        """Residual over norm; 0 for a layer that the adapter leaves as it is."""
        return self.residual / self.norm if self.norm else 0.0


@dataclass
class _Checkpoint:
    """What goes into the files, by the plain model's layer names."""

    factors: dict[str, LowRank] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    modules: dict[str, Tensor] = field(default_factory=dict)
    kernels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    modules_to_save: list[str] = field(default_factory=list)
    fan_in_fan_out: bool = False


def export_to_lora(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    extras: Extras = "keep",
    component: str | None = None,
) -> list[LoraError]:
    """Write an adapter as a plain LoRA checkpoint and return the error of each layer.

    Args:
        model: a ``PeftModel``, or a model that transformers has loaded an adapter into; left as it is.
        folder: where to write; it must not exist.
        adapter_name: which adapter; the others have no part in it.
        rank: of every layer, or the layer's own smaller one. Not with ``tolerance``.
        tolerance: the smallest rank of each layer whose relative Frobenius error is at most this. With neither, the
            factors are exact, which GOFT, and RLRR that multiplies the weight, do not have.
        extras: what to do with what the factors do not hold: shifts of biases, adapted norms, trained heads. ``keep``
            writes them as PEFT's ``lora_bias`` and ``modules_to_save``, exact, which PEFT reads but vLLM does not;
            ``refuse`` raises an error that names them; ``drop`` leaves them out.
        component: for diffusers, the name of the pipeline's component (``"unet"``, ``"transformer"``): writes
            ``pytorch_lora_weights.safetensors`` instead of PEFT's files.

    Raises InputError for arguments out of range, layers that no LoRA can stand for, and weights that are not finite.
    """
    from orthotune.training.files import new_folder  # its package imports this one's root

    folder = Path(folder)
    check_accuracy(rank, tolerance)
    config = _source_config(model, adapter_name)
    if extras not in ("keep", "refuse", "drop"):
        raise InputError(f"extras={extras!r} is not one of 'keep', 'refuse', 'drop'")
    if folder.exists():
        raise InputError(f"folder {str(folder)!r} already exists: give a new one")
    found = _Checkpoint()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for change in linear_changes(base, adapter_name):
        _check_lora_can(change)
        lora = low_rank(change.weight, change.factors, rank=rank, tolerance=tolerance)
        if lora is None:
            raise InputError(
                f"the adapter's change of layer {change.name!r} has no exact low-rank factors: give a rank, or a "
                "tolerance for the relative error"
            )
        _add(found, change, lora)
    if not found.factors:
        raise InputError(f"adapter {adapter_name!r} is on no linear layer or convolution: there is no LoRA to write")
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    state = {key.removeprefix(_PREFIX): tensor for key, tensor in state.items()}
    _add_extras(found, base, state, config, adapter_name, extras, component)
    lora_config = _lora_config(found, config, base)
    with new_folder(folder) as temporary:
        _write(found, lora_config, temporary, component)
    return [LoraError(name, len(f.a), f.norm, f.residual) for name, f in found.factors.items()]


def total_error(errors: list[LoraError]) -> float:
    """Return the relative Frobenius error over all layers together."""
    norm, residual = (sum(getattr(e, key) ** 2 for e in errors) ** 0.5 for key in ("norm", "residual"))
    return float(residual / norm) if norm else 0.0


def _source_config(model: nn.Module, adapter_name: str) -> PeftConfig:
    configs = getattr(model, "peft_config", {})
    if adapter_name not in configs:
        raise InputError(f"the model has no adapter {adapter_name!r}; it has: {', '.join(configs) or '(none)'}")
    config: Any = configs[adapter_name]
    if getattr(config, "bias", "none") != "none":
        raise InputError(f"the adapter was trained with bias={config.bias!r}, and a LoRA holds no trained biases")
    return config  # type: ignore[no-any-return]


def _check_lora_can(change: Change) -> None:
    """Raise InputError for a convolution that PEFT's LoRA would run in another way, or a change that is not finite."""
    base = change.base
    if not all(t.isfinite().all() for t in (change.weight, change.bias) if t is not None):
        raise InputError(f"the adapter's change of layer {change.name!r} contains NaN or infinity")
    if isinstance(base, nn.Conv2d) and (base.padding_mode != "zeros" or set(base.dilation) != {1}):
        raise InputError(
            f"layer {change.name!r} is a convolution with dilation={base.dilation} and padding_mode="
            f"{base.padding_mode!r}, and PEFT's LoRA has neither: merge the adapter instead"
        )


def _add(found: _Checkpoint, change: Change, lora: LowRank) -> None:
    name = change.name
    found.factors[name] = LowRank(lora.a.cpu(), lora.b.cpu(), lora.norm, lora.residual)
    found.widths[name] = len(change.weight)
    if change.bias is not None:
        found.biases[name] = change.bias.float().cpu()
    if isinstance(change.base, nn.Conv2d):
        found.kernels[name] = tuple(change.base.weight.shape[1:])
    found.fan_in_fan_out |= isinstance(change.base, Conv1D)


def _add_extras(
    found: _Checkpoint,
    model: nn.Module,
    state: dict[str, Tensor],
    config: Any,
    adapter_name: str,
    extras: Extras,
    component: str | None,
) -> None:
    norms = adapted_norms(model, adapter_name)
    adapted = tuple(f"{name}." for name in (*found.factors, *norms))
    whole = {key: tensor for key, tensor in state.items() if not key.startswith(adapted)}
    if extras != "drop":
        what = {
            "shifts of biases": sorted(found.biases),
            "norms": sorted(norms),
            "whole modules": sorted({key.rpartition(".")[0] for key in whole}),
        }
        named = "; ".join(f"{key} ({', '.join(n[:4])}{', ...' if len(n) > 4 else ''})" for key, n in what.items() if n)
        if named and (extras == "refuse" or component is not None):
            raise InputError(
                f"the adapter also holds what LoRA's factors do not: {named}. Keep them, for PEFT alone, or drop them"
            )
        found.modules = {key: tensor.detach().cpu().clone() for key, tensor in whole.items()}
        found.modules_to_save = [*(getattr(config, "modules_to_save", None) or ()), *norms]
        for name, tensors in (_norms_that_match(model, norms) | norms).items():
            found.modules.update({f"{name}.{key}": tensor.cpu() for key, tensor in tensors.items()})
    else:
        found.biases.clear()


def _norms_that_match(model: nn.Module, norms: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return the parameters of the modules that PEFT would take for one of ``norms``: their names end alike."""
    return {
        name: {key: tensor.detach() for key, tensor in module.named_parameters()}
        for name, module in plain_modules(model)
        if name not in norms and name.endswith(tuple(norms)) and not isinstance(module, WRAPPERS)
    }


def _lora_config(found: _Checkpoint, source: Any, model: nn.Module) -> LoraConfig:
    """Return a config that adapts exactly the layers found; r is the largest rank, and every scaling is 1."""
    ranks = {name: len(lora.a) for name, lora in found.factors.items()}
    largest = max(ranks.values())
    smaller = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != largest}
    config = LoraConfig(
        r=largest,
        lora_alpha=largest,
        rank_pattern=dict(smaller),
        alpha_pattern=dict(smaller),
        target_modules=sorted(ranks),
        lora_bias=bool(found.biases),
        fan_in_fan_out=found.fan_in_fan_out,
        modules_to_save=found.modules_to_save or None,
        task_type=source.task_type,
        base_model_name_or_path=source.base_model_name_or_path,
        revision=source.revision,
        inference_mode=True,
    )
    others = [name for name, _ in plain_modules(model) if name not in ranks and is_targeted(config, name)]
    config.exclude_modules = set(others) or None
    return config


def _write(found: _Checkpoint, config: LoraConfig, folder: Path, component: str | None) -> None:
    prefix = _PREFIX if component is None else f"{component}."
    tensors = {f"{prefix}{key}": tensor for key, tensor in found.modules.items()}
    for name, lora in found.factors.items():
        a, b = lora.a, lora.b
        if name in found.kernels:
            a, b = a.reshape(-1, *found.kernels[name]), b[:, :, None, None]
        tensors[f"{prefix}{name}.lora_A.weight"] = a
        tensors[f"{prefix}{name}.lora_B.weight"] = b
        if config.lora_bias:
            bias = found.biases.get(name)
            tensors[f"{prefix}{name}.lora_B.bias"] = torch.zeros(found.widths[name]) if bias is None else bias
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    if component is None:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))
        return
    fields = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    metadata = json.dumps({f"{component}.{key}": value for key, value in fields.items()}, sort_keys=True, default=str)
    save_file(
        tensors,
        folder / "pytorch_lora_weights.safetensors",
        metadata={"format": "pt", "lora_adapter_metadata": metadata},
    )
