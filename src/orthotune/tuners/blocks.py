"""Where a model's transformer blocks are, and whether a block may be given more tokens than it was made for."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from orthotune.tuners.layer import base_of
from orthotune.tuners.supported import UnsupportedLayerError

# names of modules, parameters and buffers by which attention knows where a token is
_POSITIONS = re.compile(
    r"(^|_)rope(_|$)|R[oO][pP][eE]|[rR]otary|[rR]el(ative)?_?[pP]os|[rR]elative_?[aA]tt|rel_embeddings"
    r"|distance_embedding|[aA]libi"
)


def width_of(module: nn.Module) -> int | None:
    """Return D if ``module`` maps (..., D) to (..., D), as its first and its last linear layer tell; else None."""
    sizes = [size for size in map(_size, module.modules()) if size is not None]
    return sizes[0][0] if sizes and sizes[0][0] == sizes[-1][1] else None


def _size(module: Any) -> tuple[int, int] | None:
    """Return (D, n) of a linear layer, quantised or not, or None for another module."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    size = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None


def is_block(module: nn.Module) -> bool:
    """Whether ``module`` keeps the width of its input and has an attention module inside."""
    inside = (type(m).__name__.lower() for m in module.modules() if m is not module)
    return width_of(module) is not None and any("attention" in name or "attn" in name for name in inside)


def block_lists(model: nn.Module) -> dict[str, list[str]]:
    """Return the model's lists of equal transformer blocks: the names of the blocks, in order, by the list's name."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or name.startswith(tuple(f"{n}." for n in found)):
            continue
        blocks = [base_of(child) for child in module.children()]
        if blocks and is_block(blocks[0]) and len({(type(block), width_of(block)) for block in blocks}) == 1:
            found[name] = [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]
    return found


def check_takes_more_tokens(model: nn.Module, name: str) -> None:
    """Raise UnsupportedLayerError unless tokens may be appended to what the module ``name`` of ``model`` is given.

    They may where every token attends to every other and no position enters the attention: absolute position
    embeddings, added before the first block.
    """
    block = base_of(model.get_submodule(name))
    reason = _objection(model, name, block)
    if reason:
        raise UnsupportedLayerError(
            f"layer {name!r} ({type(block).__name__}) {reason}; prompts go on blocks with full attention and absolute "
            "position embeddings, such as those of ViT, DeiT, DINOv2 and CLIP's image side"
        )


def _objection(model: nn.Module, name: str, block: nn.Module) -> str:
    if not is_block(block):
        return "is not a transformer block: it has no attention inside, or changes the width of its input"
    for module in block.modules():
        if getattr(module, "is_causal", False) is True:
            return "has causal attention, in which no token would see the prompts after it"
        if re.search(r"Cl(as)?s_?Att", type(module).__name__):
            return "lets the class token alone attend"
        if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
            return "has the sequence before the batch in its input's shape"
    inside = [*block.named_modules(), *block.named_parameters(), *block.named_buffers()]
    parts = name.split(".")
    for parent in (model.get_submodule(".".join(parts[:i])) for i in range(len(parts))):
        inside += [*parent.named_children(), *parent.named_parameters(recurse=False)]
    for member, value in inside:
        if any(_POSITIONS.search(text) for text in (member.rpartition(".")[2], type(value).__name__)):
            return f"has rotary or relative positions in its attention ({member}), and a prompt has no position"
    if any(getattr(module, "window_size", None) for module in block.modules()):
        return "attends within windows of the image, whose size is fixed"
    return ""
