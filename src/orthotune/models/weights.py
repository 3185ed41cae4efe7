"""Reading weight files and fitting them to a model, with an error that says what does not fit."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.progress import say
from orthotune.targets.kinds import in_modules

#: Under these keys training scripts store the model next to their own state.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "module")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or torch file; InputError if it is missing or neither."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights file {str(path)!r} does not exist")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts keep their arguments
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of foreign bytes raises almost anything (struct.error, EOFError, ...)
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"weights file {str(path)!r} cannot be read as safetensors or torch: {reason}") from error
    for key in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"weights file {str(path)!r} holds no state dict (a mapping from names to tensors)")
    return _encoder({name.removeprefix("module."): tensor for name, tensor in state.items()}, str(path))


def _encoder(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The encoder alone, of a file that self-supervised pre-training wrote; says what else there was.

    MoCo v3 keeps the model as ``base_encoder`` next to ``momentum_encoder`` and ``predictor``; its ``head`` is the
    projector. MAE has ``mask_token`` and a decoder whose names begin with ``decoder_``.
    """
    if any(name.startswith("base_encoder.") for name in state):
        kept = {name: name.removeprefix("base_encoder.") for name in state if name.startswith("base_encoder.")}
    elif any(name.startswith("decoder_") for name in state):
        kept = {name: name for name in state if name != "mask_token" and not name.startswith("decoder_")}
    else:
        return state
    dropped = sorted({name.partition(".")[0] for name in state.keys() - kept.keys()})
    say(f"{source}: {len(kept)} tensors of the encoder; left out: {', '.join(dropped)}")
    return {new: state[old] for old, new in kept.items()}


def load_jax(module: nn.Module, head: tuple[str, ...], path: str | Path, architecture: str) -> None:
    """Load the ``.npz`` file of the original vision transformers into a timm ``module``, but for the head.

    InputError if it is missing, or of another architecture.
    """
    if not Path(path).is_file():
        raise InputError(f"weights file {str(path)!r} does not exist")
    if not hasattr(module, "load_pretrained"):
        raise InputError(f"{architecture} takes no .npz file: give a .safetensors or torch file of this architecture")
    own = {name: tensor for name, tensor in module.named_parameters() if not in_modules(name, head)}
    with torch.no_grad():
        for tensor in own.values():
            tensor.fill_(float("nan"))  # what the file does not fill shows
    try:
        module.load_pretrained(str(path))  # type: ignore[operator]
        with np.load(path) as file:
            depth = len({match[1] for name in file.files if (match := re.search(r"encoderblock_(\d+)/", name))})
    except (KeyError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"weights file {str(path)!r} does not fit {architecture}: {reason}") from error
    blocks = len(getattr(module, "blocks", ()))
    if depth and depth != blocks:
        raise InputError(f"weights file {str(path)!r} has {depth} blocks, {architecture} has {blocks}")
    check_finite(own, str(path))


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """InputError naming the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{source}: {name} contains NaN or infinity; use an undamaged file")


def load_backbone(
    module: nn.Module,
    state: dict[str, Tensor],
    head: tuple[str, ...],
    source: str,
    architecture: str,
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> None:
    """Load everything but the head from ``state`` into ``module``.

    ``convert`` is the architecture's own filter (timm: it resizes position embeddings). InputError lists the
    missing, unexpected and differently shaped tensors.
    """
    if convert is not None:
        try:
            state = convert(state, module)
        except (KeyError, RuntimeError, ValueError, AttributeError, AssertionError, IndexError) as error:
            raise InputError(f"{source} does not fit {architecture}: {error}") from error
    state = {k: v for k, v in state.items() if not in_modules(k, head)}
    own = {k: v for k, v in module.state_dict().items() if not in_modules(k, head)}
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    problems = []
    if shapes:
        k = shapes[0]
        theirs, ours = tuple(state[k].shape), tuple(own[k].shape)
        problems.append(f"{len(shapes)} of another shape ({k} is {theirs}, the model has {ours})")
    if missing:
        problems.append(f"{len(missing)} missing ({', '.join(missing[:3])})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])})")
    if problems:
        hint = "give the file of this architecture, or the --model (and --model-args) of this file"
        norms = [{name.partition(".")[0] for name in names} & {"norm", "fc_norm"} for names in (unexpected, missing)]
        if all(norms):
            pool = "avg" if "fc_norm" in norms[0] else "token"
            hint = f"the file's last norm is another than the model's: add --model-args.global_pool {pool}, or " + hint
        raise InputError(f"{source} does not fit {architecture}: tensors {'; '.join(problems)}; {hint}")
    check_finite(state, source)
    module.load_state_dict(state, strict=False)


def fingerprint(module: nn.Module, head: tuple[str, ...]) -> str:
    """SHA-256 over names and bytes of every tensor outside the head: tells whether two bases are the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if in_modules(name, head):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data if data.numel() else b"")
    return digest.hexdigest()
