"""Reading weight files and fitting them to a model, with an error that says what does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotune.errors import InputError

#: Under these keys training scripts store the model next to their own state.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "module")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or torch file; InputError if it is missing or neither."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights file {str(path)!r} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
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
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def in_modules(name: str, modules: tuple[str, ...]) -> bool:
    """Whether the tensor or module ``name`` is, or lies in, one of ``modules``."""
    return any(name == m or name.startswith(m + ".") for m in modules)


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
        raise InputError(
            f"{source} does not fit {architecture}: tensors {'; '.join(problems)}; "
            "give the file of this architecture, or the --model (and --model-args) of this file"
        )
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
