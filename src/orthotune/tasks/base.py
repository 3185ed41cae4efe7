"""What the training loop, evaluation and the run folder need to know of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from orthotune.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from orthotune.data.images import EpochBatches
    from orthotune.models import AdaptedModel, Classifier
    from orthotune.training.config import FitConfig


@dataclass
class Loss:
    """The mean loss of a batch, and how many of its examples were right where that can be counted."""

    mean: Tensor
    hits: Tensor | None = None


def check_outputs(outputs: Tensor) -> None:
    """InputError if an output of the model is not finite."""
    if not torch.isfinite(outputs).all():
        raise InputError(
            "the model's outputs contain NaN or infinity: try a smaller --lr, or --precision no instead of fp16"
        )


class TaskScores(Protocol):
    """The scores of a model on a split."""

    def as_dict(self) -> dict[str, Any]:
        """As metrics.json has it: ``loss`` and the metrics, in [0, 1], next to the number of examples."""

    def lines(self) -> list[str]:
        """For the terminal."""


class Task(ABC):
    """One task under the settings of a run. ``classes`` are the names of the logits, empty where there are none.

    ``fit`` calls :meth:`read`, :meth:`build`, :meth:`preprocessing` and :meth:`encode` in this order; a finished run
    is opened with :meth:`build` and :meth:`restore`, and may read other data with :meth:`read_split`.
    """

    unit: ClassVar[str] = "examples"
    #: the curve has ``val_<metric>``, by which the best epoch is chosen
    metric: str = "accuracy"
    #: the main one of the test scores
    test_metric: str = "accuracy"

    def __init__(self, config: FitConfig, classes: list[str]) -> None:
        self.config, self.classes = config, classes

    @classmethod
    @abstractmethod
    def read(cls, config: FitConfig) -> Task:
        """The task of ``config.data``, which is checked as far as that is possible without the model."""

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that were read: ``train``, and ``val`` and ``test`` where they exist."""

    @abstractmethod
    def build(self, weights: str | None = None) -> Classifier:
        """The base model with a new head; ``weights`` overrides ``config.weights``."""

    @abstractmethod
    def preprocessing(self, base: Classifier) -> dict[str, Any]:
        """Decide how data are prepared for ``base``, and say it as metrics.json has it."""

    @abstractmethod
    def restore(self, base: Classifier, preprocessing: Mapping[str, Any]) -> None:
        """Prepare data as the run whose ``preprocessing`` is given."""

    @abstractmethod
    def encode(self, base: Classifier) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the data of ``train``, ``val`` and ``test`` as far as they exist, their description)."""

    @abstractmethod
    def read_split(self, data: str, split: str, base: Classifier) -> Any:
        """One split of other data, encoded."""

    @abstractmethod
    def loader(
        self, store: Any, batch_size: int, *, shuffle: bool = False, seed: int = 0, workers: int = 0
    ) -> tuple[DataLoader[Any], EpochBatches]:
        """(loader of batches, its sampler; set ``epoch`` of that before a pass)."""

    @abstractmethod
    def count(self, batch: Any) -> int:
        """How many terms the mean loss of a batch has: batches of one update are weighted by it."""

    @abstractmethod
    def loss(self, model: AdaptedModel, batch: Any, accelerator: Accelerator) -> Loss:
        """The loss to train on, without the method's penalty."""

    @abstractmethod
    def evaluate(
        self, model: AdaptedModel, store: Any, accelerator: Accelerator, batch_size: int, workers: int = 0
    ) -> TaskScores:
        """Scores in evaluation mode; InputError if an output is not finite."""

    def rank(self, entry: Mapping[str, Any]) -> tuple[float, float]:
        """Higher is a better epoch: validation metric, then lower loss; without validation every later epoch."""
        return entry.get(f"val_{self.metric}", 0.0), -entry.get("val_loss", 0.0)
