"""What the tasks of texts have in common: reading, the model with its tokenizer, scores by name."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader

from orthotune.errors import InputError
from orthotune.models.adapt import AdaptedModel
from orthotune.models.build import Classifier
from orthotune.models.text import Head, TextModel, TextPreprocessing, build_text_model
from orthotune.progress import say
from orthotune.tasks.base import Task
from orthotune.tasks.encoded import Encoded, LengthBatches, text_loader
from orthotune.texts import TextData, read
from orthotune.training.config import FitConfig


@dataclasses.dataclass
class LanguageScores:
    """The loss and the metrics by name, each in [0, 1] (correlations in [-1, 1])."""

    examples: int
    loss: float
    metrics: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """As metrics.json has it."""
        return {"examples": self.examples, "loss": self.loss, **self.metrics}

    def lines(self) -> list[str]:
        """For the terminal."""
        rows = {"examples": str(self.examples), **{k.replace("_", " "): f"{v:.2%}" for k, v in self.metrics.items()}}
        rows["loss"] = f"{self.loss:.4f}"
        return [f"{name:<16}{value}" for name, value in rows.items()]


class LanguageTask(Task):
    """A task of texts. ``head`` is what the model gives, ``default_length`` the tokens where nothing is said."""

    head: ClassVar[Head]
    default_length: ClassVar[int]

    def __init__(self, config: FitConfig, classes: list[str], data: TextData | None = None) -> None:
        super().__init__(config, classes)
        self.data = data
        self.tokenizer: Any = None

    @classmethod
    def read(cls, config: FitConfig) -> Task:
        data = read(config.data, config.validation, config.val_fraction, config.seed)
        if "train" not in data.splits:
            raise InputError(f"--data {config.data!r} has nothing to train on")
        for sentence in data.deviations():
            say(sentence)
        if not config.test:
            splits = {name: records for name, records in data.splits.items() if not name.startswith("test")}
            data = dataclasses.replace(data, splits=splits)
        return cls(config, list(data.classes), data.limited(config.train_limit))

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.data.splits) if self.data is not None else ()

    def build(self, weights: str | None = None) -> TextModel:
        config = self.config
        base = build_text_model(
            config.model,
            self.head,
            self.classes,
            weights=weights or config.weights,
            random_weights=config.random_weights,
            model_args=config.model_args,
            seed=config.seed,
        )
        self.tokenizer = base.processor
        return base

    def preprocessing(self, base: Classifier) -> dict[str, Any]:
        assert isinstance(base, TextModel)
        how = TextPreprocessing(base.max_length(self.config.max_length, self.default_length))
        self.restore(base, dataclasses.asdict(how))
        return dataclasses.asdict(base.preprocessing)

    def restore(self, base: Classifier, preprocessing: Mapping[str, Any]) -> None:
        base.preprocessing = TextPreprocessing(**preprocessing)  # type: ignore[assignment]

    def encode(self, base: Classifier) -> tuple[dict[str, Any], dict[str, Any]]:
        assert self.data is not None
        how = self._how(base)
        stores = {name: self.encoded(records, how) for name, records in self.data.splits.items()}
        return dict(stores), self.data.describe()

    def read_split(self, data: str, split: str, base: Classifier) -> Encoded:
        scheme = self.config.data.partition(":")[0]
        spec = data if data.partition(":")[0] == scheme and ":" in data else f"{scheme}:{data}"
        found = read(
            spec, "none" if split != "val" else "auto", self.config.val_fraction, self.config.seed, classes=self.classes
        )
        if split not in found.splits:
            raise InputError(f"--data {data!r} has no split {split!r}; it has: {', '.join(found.splits)}")
        return self.encoded(found.splits[split], self._how(base))

    def _how(self, base: Classifier) -> TextPreprocessing:
        assert isinstance(base.preprocessing, TextPreprocessing)
        return base.preprocessing

    @abstractmethod
    def encoded(self, records: list[Any], how: TextPreprocessing) -> Encoded:
        """Tokenise."""

    @abstractmethod
    def collate(self, features: list[dict[str, Any]]) -> Any:
        """A batch of tensors of features, padded to the longest."""

    def loader(
        self, store: Encoded, batch_size: int, *, shuffle: bool = False, seed: int = 0, workers: int = 0
    ) -> tuple[DataLoader[Any], LengthBatches]:
        return text_loader(store, batch_size, self.collate, shuffle=shuffle, seed=seed, workers=workers)

    def outputs(self, model: AdaptedModel, batch: Mapping[str, Tensor], accelerator: Accelerator) -> Tensor:
        """The model's logits of a batch in fp32, on its device."""
        inputs = {name: batch[name] for name in self.tokenizer.model_input_names if name in batch}
        with accelerator.autocast():
            found = model.logits(send_to_device(inputs, accelerator.device))
        return found.float()
