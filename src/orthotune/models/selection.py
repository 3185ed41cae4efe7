"""The methods without an adapter: which of the model's own parameters are trained besides the head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeGuard

from torch import nn

from orthotune.errors import InputError
from orthotune.targets.kinds import in_modules

if TYPE_CHECKING:
    from orthotune.models.build import Classifier


@dataclass
class Selection:
    """Base: trains the head alone. A method says what else, and may change the head first."""

    changes_architecture: ClassVar[bool] = False

    def modules(self, classifier: Classifier) -> tuple[str, ...]:
        """Names of the modules trained besides the head; ``""`` is the whole model."""
        return ()

    def change_head(self, classifier: Classifier) -> None:
        """Replace the classifier's head, where the method has another one."""

    def apply(self, classifier: Classifier) -> None:
        """Freeze the model but for what the method trains."""
        modules = (*self.modules(classifier), *classifier.head)
        self.change_head(classifier)
        for name, parameter in classifier.module.named_parameters():
            parameter.requires_grad_("" in modules or in_modules(name, modules))


@dataclass
class LinearProbe(Selection):
    """The head on frozen features."""


@dataclass
class FullFineTuning(Selection):
    """Every parameter, and the running statistics."""

    def modules(self, classifier: Classifier) -> tuple[str, ...]:
        return ("",)


@dataclass
class PartialFineTuning(Selection):
    """The last blocks, and the norms after them (Partial-k in Jia et al., ECCV 2022, arXiv 2203.12119)."""

    blocks: int = field(default=1, metadata={"help": "How many of the last blocks are trained."})

    def modules(self, classifier: Classifier) -> tuple[str, ...]:
        model, blocks = classifier.module, block_names(classifier.module)
        if not 1 <= self.blocks <= len(blocks):
            raise InputError(f"blocks={self.blocks} is out of range: {classifier.name} has {len(blocks)} blocks")
        names = [name for name, _ in model.named_modules()]
        after = names[names.index(blocks[-1]) :]
        inside = tuple(f"{block}." for block in blocks)
        norms = [n for n in after if is_norm(model.get_submodule(n)) and not n.startswith(inside)]
        return (*blocks[-self.blocks :], *norms)


@dataclass
class MLPHead(Selection):
    """``layers`` hidden layers of the features' width, with GELU, before the linear one (MLP-k, same source)."""

    layers: int = field(default=3, metadata={"help": "Number of hidden layers."})
    changes_architecture: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise InputError(f"layers={self.layers} is out of range: it is a whole number of at least 1")

    def change_head(self, classifier: Classifier) -> None:
        for name in classifier.head:
            parent, _, child = name.rpartition(".")
            holder = classifier.module.get_submodule(parent)
            last = getattr(holder, child)
            if not isinstance(last, nn.Linear):
                raise InputError(
                    f"the head {name!r} of {classifier.name} is a {type(last).__name__}; mlp-head needs an nn.Linear"
                )
            width = last.in_features
            hidden = [part for _ in range(self.layers) for part in (_hidden(width), nn.GELU())]
            setattr(holder, child, nn.Sequential(*hidden, last))


def _hidden(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def block_names(model: nn.Module) -> list[str]:
    """Names of the blocks in order, over all stages: members of lists of one class of module with a norm inside.

    InputError if the model has none.
    """
    lists = {name: module for name, module in model.named_modules() if _may_be_blocks(module)}
    innermost = [n for n in lists if not any(other.startswith(f"{n}.") for other in lists)]
    if not innermost:
        raise InputError(f"{type(model).__name__} has no list of blocks")
    return [f"{name}.{i}" for name in innermost for i in range(len(lists[name]))]


def _may_be_blocks(module: nn.Module) -> TypeGuard[nn.ModuleList | nn.Sequential]:
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len({type(m) for m in module}) != 1:
        return False
    return any(True for _ in module[0].children()) and any(map(is_norm, module[0].modules()))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation, by the name of its class."""
    return "norm" in type(module).__name__.lower()
