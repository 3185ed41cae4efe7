"""Writing the plain model: the adapter merged into the weights, checked against the adapted model first."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors.torch import save_file
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.methods import get_method
from orthotune.models import AdaptedModel
from orthotune.models.text import quiet_transformers
from orthotune.models.weights import check_finite
from orthotune.training.files import new_folder, write_json
from orthotune.training.run import FinishedRun, open_run

#: Largest difference of logits between merged and adapted model, relative to the largest logit: fp32 rounding
#: through a deep network, far below any change of an adapter that matters.
TOLERANCE = 1e-4


@dataclass
class MergeReport:
    """How far the merged model's logits are from the adapted model's, relative to the largest logit."""

    out: str
    max_difference: float
    tolerance: float = TOLERANCE


def merge(run: str | Path, out: str | Path, *, weights: str | None = None, overwrite: bool = False) -> MergeReport:
    """Merge the run's adapter and write a folder that timm or transformers load without this package.

    timm: ``model.safetensors`` (the architecture's own names) and ``config.json`` in timm's ``local-dir:`` format;
    transformers: what ``save_pretrained`` writes. InputError if the merged model is not the adapted one within
    TOLERANCE, or not finite, or ``out`` is there already (without ``overwrite``).
    """
    out = Path(out)
    if out.exists() and not (overwrite and out.is_dir() and (out / "config.json").is_file()):
        hint = "add --overwrite or give another --out" if (out / "config.json").is_file() else "give another --out"
        raise InputError(f"--out {str(out)!r} already exists: {hint}")
    finished = open_run(run, weights=weights)
    if obstacle := finished.model.merge_obstacle():
        raise InputError(
            f"what method {finished.config.method!r} trained cannot be merged: {obstacle}. Use the run itself with "
            "orthotune evaluate and predict"
        )
    module, difference = merged_module(finished.model, finished.config.seed)
    with new_folder(out) as folder:
        if finished.model.classifier.library == "timm":
            _write_timm(finished, module, folder)
        else:
            with quiet_transformers():
                module.save_pretrained(str(folder))  # type: ignore[operator]
            finished.model.classifier.processor.save_pretrained(str(folder))
        shutil.copy(finished.folder.classes, folder / "classes.json")
    return MergeReport(str(out), difference)


def merged_module(model: AdaptedModel, seed: int = 0) -> tuple[nn.Module, float]:
    """(the plain model with the adapter merged, relative difference of its outputs on a random batch).

    ``model`` itself is left as it is. InputError if the difference exceeds TOLERANCE or a weight is not finite.
    """
    classifier, adapted = model.classifier, copy.deepcopy(model.module).eval()
    inputs = send_to_device(classifier.random_inputs(4, seed), next(adapted.parameters()).device)
    with torch.no_grad():
        before = classifier.logits(adapted, inputs)
        plain = _unload(adapted) if get_method(model.method).is_adapter else adapted
        after = classifier.logits(plain.eval(), inputs)
    check_finite(plain.state_dict(), "the merged model")
    difference = relative_difference(before, after)
    if not difference <= TOLERANCE:
        raise InputError(
            f"the merged model differs from the adapted one by {difference:.2g} of the largest logit "
            f"(allowed {TOLERANCE:g}); nothing was written. Train in fp32, or check the run for huge weights"
        )
    return plain, difference


def _unload(module: Any) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            return module.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT: NaN in the merged weight
        raise InputError(f"the adapter cannot be merged: {' '.join(str(error).split())}") from error


def relative_difference(before: Tensor, after: Tensor) -> float:
    """Return the largest difference between two batches of logits, relative to the largest logit of the first."""
    scale = before.abs().max().clamp_min(1e-6)
    return ((after - before).abs().max() / scale).item()


def _write_timm(finished: FinishedRun, module: nn.Module, folder: Path) -> None:
    config, preprocessing = finished.config, finished.model.classifier.preprocessing
    tensors = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    original: Any = module.pretrained_cfg
    model_args = dict(config.model_args)
    if config.image_size is not None and _takes_img_size(module):
        model_args["img_size"] = config.image_size
    write_json(
        folder / "config.json",
        {
            "architecture": original["architecture"],
            "num_classes": len(finished.classes),
            "num_features": getattr(module, "num_features", None),
            "label_names": finished.classes,
            "model_args": model_args,
            "pretrained_cfg": {
                "input_size": [3, preprocessing.size, preprocessing.size],
                "interpolation": preprocessing.interpolation,
                "crop_pct": 1.0 if preprocessing.resize == "squash" else preprocessing.crop_pct,
                "crop_mode": "squash" if preprocessing.resize == "squash" else "center",
                "mean": list(preprocessing.mean),
                "std": list(preprocessing.std),
                "first_conv": original.get("first_conv"),
                "classifier": original.get("classifier"),
            },
            "orthotune": {"method": config.method, "preprocessing": dataclasses.asdict(preprocessing)},
        },
    )


def _takes_img_size(module: nn.Module) -> bool:
    """Whether the model was built for one size (then the size is an argument of the architecture)."""
    return bool(getattr(getattr(module, "patch_embed", None), "img_size", None))
