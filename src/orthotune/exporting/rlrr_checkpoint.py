"""Checkpoints of the RLRR authors' code (github.com/cndongsky/RLRR, ``models/networks.py``) as PEFT adapters.

The code saves every tensor whose name has ``head``, ``scale`` or ``shift`` in it. For its vision transformers:

* ``scale_col`` (1, D), ``scale_line`` (n, 1) and ``shift_bias`` (1, n) of each linear layer, with
  W* = W + W (.) (scale_line scale_col) and b* = b + shift_bias, W being (n, D); queries, keys and values are layers
  of their own, which timm has as one;
* ``ssf_scale_*`` and ``ssf_shift_*`` (n,) of each norm and of the patch embedding: y* = y (.) scale + shift;
* the head.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.models import AdaptedModel, adapt, build_classifier, save_trained
from orthotune.models.weights import check_finite, read_state_dict
from orthotune.training.files import new_folder

_ROOT = "transformer."
_PATCH = "patch_embed.proj"
_TARGETS = ["q", "k", "v", "attn.proj", "fc1", "fc2", "norm1", "norm2", "norm", _PATCH]
_NAMES = {
    "attn.query": "attn.qkv.q",
    "attn.key": "attn.qkv.k",
    "attn.value": "attn.qkv.v",
    "attn.out": "attn.proj",
    "ffn.fc1": "mlp.fc1",
    "ffn.fc2": "mlp.fc2",
    "attn_norm": "norm1",
    "ffn_norm": "norm2",
}
_LINEAR = re.compile(r"encoder\.layer\.(\d+)\.(\w+\.\w+)\.(scale_col|scale_line|shift_bias)")
_SCALED = re.compile(r"(?:encoder\.layer\.(\d+)|encoder|embeddings)\.ssf_(scale|shift)_(\w+)")


def import_rlrr(
    file: str | Path,
    model: str,
    out: str | Path,
    *,
    weights: str | None = None,
    image_size: int | None = None,
    model_args: dict[str, Any] | None = None,
) -> AdaptedModel:
    """Write the adapter folder ``out`` of a checkpoint of the authors' vision transformer; return the model with it.

    Args:
        file: the ``.pth`` file.
        model: timm's name of the vision transformer, whose weights the file does not hold.
        out: the folder to create, in PEFT's format, with the head.
        weights: the file of the base weights instead of the hub's.
        image_size: pixels a side, if not the model's own.
        model_args: further arguments of the architecture.

    The patch embedding's scale s and shift f become an adapter of its convolution, with weights s W and bias s b + f.

    Raises InputError for another kind of checkpoint, and where names or shapes do not fit the model.
    """
    state = read_state_dict(file)
    check_finite(state, str(file))
    layers, head = _layers(state, str(file))
    if Path(out).exists():
        raise InputError(f"--out {str(out)!r} already exists: give a new folder")
    classifier = build_classifier(
        model, len(head["weight"]), weights=weights, image_size=image_size, model_args=model_args
    )
    if classifier.library != "timm" or not hasattr(classifier.module, "patch_embed"):
        raise InputError(f"{model} is not a vision transformer of timm, whose layers the authors' are mapped to")
    adapted = adapt(classifier, "rlrr", {"target_modules": _TARGETS})
    base: nn.Module = adapted.module.get_base_model()  # type: ignore[operator]
    left = {id(parameter): name for name, parameter in adapted.trained_tensors().items()}
    for name, theirs in {**layers, "head": head}.items():
        _fill(base, name, theirs, left, model)
    if left:
        names = sorted(left.values())
        raise InputError(f"{str(file)!r} lacks {len(names)} tensors for {model}, among them that of {names[0]}")
    with new_folder(Path(out)) as folder:
        save_trained(adapted, folder)
    return adapted


def _layers(state: dict[str, Tensor], file: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the tensors by layer, under timm's names, and the head's."""
    layers: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in state.items():
        linear, scaled = (pattern.fullmatch(key.removeprefix(_ROOT)) for pattern in (_LINEAR, _SCALED))
        if key in ("head.weight", "head.bias"):
            head[key.removeprefix("head.")] = tensor
        elif key.startswith(_ROOT) and linear is not None and linear[2] in _NAMES:
            layers.setdefault(f"blocks.{linear[1]}.{_NAMES[linear[2]]}", {})[linear[3]] = tensor
        elif key.startswith(_ROOT) and scaled is not None and (scaled[1] is None or scaled[3] in _NAMES):
            name = f"blocks.{scaled[1]}.{_NAMES[scaled[3]]}" if scaled[1] is not None else _outside(scaled[3])
            layers.setdefault(name, {})[scaled[2]] = tensor
        else:
            raise InputError(
                f"{file!r} holds {key!r}, which is no tensor of the RLRR authors' vision transformer; reading their "
                "Swin and ResNet is not implemented"
            )
    if set(head) != {"weight", "bias"}:
        raise InputError(f"{file!r} holds no head (head.weight and head.bias)")
    return layers, head


def _outside(name: str) -> str:
    return {"enc_norm": "norm", "patch": _PATCH}.get(name, name)


@torch.no_grad()
def _fill(base: nn.Module, name: str, theirs: dict[str, Tensor], left: dict[int, str], model: str) -> None:
    """Copy one layer's tensors into the adapter's parameters, taking these off ``left``."""
    try:
        layer: Any = base.get_submodule(name)
    except AttributeError:
        raise InputError(f"the checkpoint has tensors for layer {name!r}, which {model} has not") from None
    if name == "head":
        whole = layer.modules_to_save["default"]
        ours = {"weight": whole.weight, "bias": whole.bias}
    else:
        stores = {part: getattr(layer, f"rlrr_{part}") for part in ("left", "right", "shift")}
        ours = {part: store["default"] for part, store in stores.items() if "default" in store}
        theirs = _converted(name, layer, theirs)
    for part, parameter in ours.items():
        tensor = theirs.get(part)
        if tensor is None or tensor.shape != parameter.shape:
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise InputError(
                f"layer {name!r} of {model} takes a {part} of shape {tuple(parameter.shape)}, and the checkpoint's is "
                f"{found}: give the --model (and --model-args) that it was trained on"
            )
        parameter.copy_(tensor)
        left.pop(id(parameter))


def _converted(name: str, layer: Any, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' tensors of a layer in this package's layout, those that are there."""
    if name == _PATCH and {"scale", "shift"} <= theirs.keys():
        convolution = layer.get_base_layer()
        gain = theirs["scale"] - 1
        if gain.shape != convolution.bias.shape:
            return {"shift": gain}
        return {
            "left": gain.new_ones(layer.in_features, 1),
            "right": gain.repeat_interleave(convolution.kernel_size[0])[None],
            "shift": convolution.bias * gain + theirs["shift"],
        }
    moved = {
        "scale_col": ("left", lambda t: t.T),
        "scale_line": ("right", lambda t: t.T),
        "shift_bias": ("shift", lambda t: t.flatten()),
        "scale": ("right", lambda t: t[None]),
        "shift": ("shift", lambda t: t),
    }
    return {part: move(theirs[key]) for key, (part, move) in moved.items() if key in theirs}
