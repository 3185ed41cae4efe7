"""Everything that determines a run, as one flat record: the flags, the YAML keys and the Python arguments."""

# ruff: noqa: RUF009  _option makes a dataclass field

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from orthotune.errors import InputError
from orthotune.fields import parse_value
from orthotune.methods import METHODS, get_method, near
from orthotune.tasks import TaskName, task_of_data

#: Fields that may differ between a run and its continuation: they do not change the result.
RUNTIME_FIELDS = frozenset({"num_workers", "cache_mb", "out"})


_IMAGE = ("image",)
_TEXTS = ("text", "qa", "instruct")


def _option(group: str, text: str, default: Any = dataclasses.MISSING, tasks: tuple[str, ...] | None = None) -> Any:
    metadata = {"group": group, "help": text, "tasks": tasks}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class FitConfig:
    """The settings of ``fit``. Field names are the flags' (with ``_`` for ``-``) and the keys of config.yaml."""

    model: str = _option("model", "timm name, or transformers hub id or directory")
    data: str = _option(
        "data",
        "folder with train/ [val/] [test/], one sub-folder per class in each; or SCHEME:WHERE, of images "
        "(orthotune data list) or texts: glue:FOLDER/cola, text:FOLDER, squad:PATH, alpaca:PATH",
    )
    method: str = _option("method", "one of: " + ", ".join(METHODS))
    out: str = _option("run", "run folder to create")

    weights: str | None = _option(
        "model",
        "state dict of the model (.safetensors or torch) instead of the hub's; its head is not used",
        None,
    )
    random_weights: bool = _option("model", "start from random weights, not pretrained ones", False)
    image_size: int | None = _option("model", "pixels a side; null: the model's own", None, _IMAGE)
    model_args: dict[str, Any] = _option(
        "model", "further arguments of the architecture, e.g. --model-args.depth 4", {}
    )
    dropout: float = _option("model", "dropout before the head (timm)", 0.0, _IMAGE)
    drop_path: float = _option("model", "stochastic depth (timm)", 0.0, _IMAGE)
    mean: tuple[float, float, float] | None = _option(
        "model", "normalisation mean, 3 numbers; null: the model's own", None, _IMAGE
    )
    std: tuple[float, float, float] | None = _option(
        "model", "normalisation std, 3 numbers; null: the model's own", None, _IMAGE
    )

    validation: Literal["auto", "none", "join"] = _option(
        "data",
        "auto: val/ or else a share of train chooses the best epoch; none: all of train, last epoch; "
        "join: train and val together, last epoch",
        "auto",
    )
    val_fraction: float = _option("data", "share of each class of train to validate on where val/ is missing", 0.2)
    test: bool = _option("data", "score the kept epoch on test/, where there is one", True)
    augment: Literal["vtab", "fgvc", "flip", "none"] = _option(
        "data",
        "vtab: resize to a square; flip: that and random flips; fgvc: random resized crop and flip "
        "(evaluated on the centre crop); none: the model's own resize and centre crop",
        "vtab",
        _IMAGE,
    )
    task: TaskName | None = _option(
        "data",
        "what is learnt: classes of images or texts, answers in a context, responses; null: what --data is",
        None,
    )
    max_length: int | None = _option(
        "data",
        "texts: tokens after which they are cut; null: 128, qa 384, instruct 512, or what the model takes",
        None,
        _TEXTS,
    )
    train_limit: int | None = _option(
        "data", "texts: train on so many examples only, the same ones for every seed; null: all", None, _TEXTS
    )
    stride: int = _option("data", "qa: tokens that neighbouring windows of a long context share", 128, ("qa",))
    cache_mb: int = _option("data", "memory for decoded images, MiB; the rest is decoded when needed", 1024)
    num_workers: int = _option("data", "processes that prepare images; 0: the main process", 0)

    adapter: dict[str, Any] = _option(
        "method", "fields of the method's PEFT config, e.g. --adapter.r 4; list: orthotune methods NAME", {}
    )

    epochs: int = _option("optimisation", "passes over the training data", 100)
    warmup_epochs: float | None = _option("optimisation", "linear warm-up; null: a tenth of the epochs", None)
    batch_size: int = _option("optimisation", "examples per forward pass", 64)
    accumulate: int = _option("optimisation", "forward passes per update", 1)
    lr: float | None = _option("optimisation", "peak learning rate of AdamW, then cosine; null: the method's", None)
    head_lr: float | None = _option("optimisation", "peak learning rate of the head; null: as lr", None)
    weight_decay: float = _option("optimisation", "decoupled weight decay", 1e-4)
    decay_1d: bool = _option("optimisation", "apply weight decay to biases and other vectors, too", False)
    label_smoothing: float = _option(
        "optimisation", "share of the target spread over all classes", 0.0, ("image", "text", "instruct")
    )
    clip: float | None = _option("optimisation", "largest gradient norm; null: no clipping", None)

    precision: Literal["no", "bf16", "fp16"] = _option("run", "automatic mixed precision", "no")
    grad_checkpointing: bool = _option("run", "recompute activations: less memory, more time", False)
    seed: int = _option("run", "of the split, the head, the adapter, the order and the augmentations", 0)
    device: str = _option("run", "auto, cpu, cuda, cuda:1, mps, ...", "auto")

    def __post_init__(self) -> None:
        for name in ("model", "data", "out", "weights"):
            value = getattr(self, name)
            setattr(self, name, str(value) if isinstance(value, Path) else value)
        hints = typing.get_type_hints(FitConfig)
        for f in dataclasses.fields(self):
            value = parse_value(flag(f.name), hints[f.name], getattr(self, f.name))
            setattr(self, f.name, value)
        self._check_ranges()
        self.task = task_of_data(self.data, self.task)
        self._check_task()

    def _check_ranges(self) -> None:
        method = get_method(self.method)
        for name in ("epochs", "batch_size", "accumulate"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("weight_decay", "num_workers", "cache_mb", "seed"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("dropout", "drop_path", "label_smoothing"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("stride", self.stride >= 0, "at least 0")
        for name in ("lr", "head_lr", "clip", "image_size", "max_length", "train_limit"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "above 0")
        self._require("std", self.std is None or min(self.std) > 0, "above 0")
        self._require("val_fraction", 0 < self.val_fraction < 1, "in (0, 1)")
        warmup = self.warmup_epochs
        self._require("warmup_epochs", warmup is None or 0 <= warmup <= self.epochs, "from 0 to --epochs")
        if self.lr is None:
            self.lr = method.lr
        if self.head_lr is None:
            self.head_lr = self.lr
        if self.warmup_epochs is None:
            self.warmup_epochs = self.epochs / 10

    def _check_task(self) -> None:
        """InputError for a setting that the task has no use for, if it is not left at its default."""
        for f in dataclasses.fields(self):
            tasks = f.metadata.get("tasks")
            if tasks is None or self.task in tasks or getattr(self, f.name) == f.default:
                continue
            hint = "; set the model's own with --model-args" if f.name in ("dropout", "drop_path") else ""
            raise InputError(
                f"{flag(f.name)} goes with the tasks {', '.join(tasks)}, and --data {self.data!r} is of the task "
                f"{self.task}: leave it out{hint}"
            )

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise InputError(f"{flag(name)} is {getattr(self, name)!r}; it must be {rule}")

    def architecture_args(self) -> dict[str, Any]:
        """What is passed to the architecture: ``model_args``, and dropout and stochastic depth where set."""
        named = {"drop_rate": self.dropout, "drop_path_rate": self.drop_path}
        return {**{k: v for k, v in named.items() if v}, **self.model_args}

    def to_yaml(self) -> str:
        """The text of config.yaml."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "config") -> FitConfig:
        """From the keys of a YAML file; InputError for an unknown or a missing key."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise InputError(f"{source}: setting {key!r} is unknown; {near(key, fields)}")
        for name, f in fields.items():
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and name not in values:
                raise InputError(f"{flag(name)} is missing ({f.metadata['help']})")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> FitConfig:
        """From a YAML file."""
        return cls.from_mapping(read_yaml(path), str(path))

    def differing(self, other: FitConfig) -> list[str]:
        """``field (this / other)`` for each setting that would change the result."""
        a, b = dataclasses.asdict(self), dataclasses.asdict(other)
        return [f"{flag(k)} ({a[k]!r}, was {b[k]!r})" for k in a if k not in RUNTIME_FIELDS and a[k] != b[k]]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError if it is missing or something else."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"config file {str(path)!r} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"config file {str(path)!r} is not YAML: {reason}") from error
    if not isinstance(values, dict):
        raise InputError(f"config file {str(path)!r} must hold settings as 'name: value' lines")
    return values


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")
