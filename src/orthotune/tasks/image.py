"""Classes of images: cross-entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from orthotune.data import ImageData, ImageStore, describe, loader, read_split, scan
from orthotune.data.images import EpochBatches, normalise
from orthotune.models import AdaptedModel, Classifier, Preprocessing, build_classifier
from orthotune.progress import say, track
from orthotune.tasks.base import Loss, Task, check_outputs
from orthotune.training.config import FitConfig
from orthotune.training.metrics import Scores, score

Batch = tuple[Tensor, Tensor]


class ImageTask(Task):
    """Classification of images."""

    unit: ClassVar[str] = "images"
    test_metric = "top1"

    def __init__(self, config: FitConfig, classes: list[str], data: ImageData | None = None) -> None:
        super().__init__(config, classes)
        self.data = data

    @classmethod
    def read(cls, config: FitConfig) -> ImageTask:
        data = scan(config.data, config.validation, config.val_fraction, config.seed)
        if not config.test:
            data = dataclasses.replace(data, test=None)
        return cls(config, list(data.classes), data)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.data.splits()) if self.data is not None else ()

    def build(self, weights: str | None = None) -> Classifier:
        config = self.config
        return build_classifier(
            config.model,
            len(self.classes),
            image_size=config.image_size,
            weights=weights or config.weights,
            random_weights=config.random_weights,
            model_args=config.architecture_args(),
            mean=config.mean,
            std=config.std,
            class_names=self.classes,
            seed=config.seed,
        )

    def preprocessing(self, base: Classifier) -> dict[str, Any]:
        assert self.data is not None
        self.data = dataclasses.replace(self.data, warnings=self.data.warnings + base.warnings)
        for warning in self.data.warnings:
            say(f"warning: {warning}")
        resize: Literal["crop", "squash"] = "crop" if self.config.augment in ("fgvc", "none") else "squash"
        base.preprocessing = dataclasses.replace(base.preprocessing, resize=resize)
        return dataclasses.asdict(base.preprocessing)

    def restore(self, base: Classifier, preprocessing: Mapping[str, Any]) -> None:
        base.preprocessing = Preprocessing.from_dict(preprocessing)

    def encode(self, base: Classifier) -> tuple[dict[str, Any], dict[str, Any]]:
        assert self.data is not None
        config, stores = self.config, {}
        budget = config.cache_mb << 20
        for name, split in self.data.splits().items():
            augment = config.augment if name == "train" else None
            stores[name] = ImageStore(
                split, base.preprocessing, augment, seed=config.seed, cache_bytes=budget, name=f"{name} images"
            )
            budget -= stores[name].cached_bytes
        digests = {k: v for store in stores.values() for k, v in store.digests.items()}
        return dict(stores), describe(self.data, digests)

    def read_split(self, data: str, split: str, base: Classifier) -> ImageStore:
        images = read_split(data, split, tuple(self.classes))
        return ImageStore(images, base.preprocessing, cache_bytes=1 << 30, name=f"{split} images")

    def loader(
        self, store: ImageStore, batch_size: int, *, shuffle: bool = False, seed: int = 0, workers: int = 0
    ) -> tuple[DataLoader[Batch], EpochBatches]:
        return loader(store, batch_size, shuffle=shuffle, seed=seed, workers=workers)

    def count(self, batch: Batch) -> int:
        return len(batch[1])

    def loss(self, model: AdaptedModel, batch: Batch, accelerator: Accelerator) -> Loss:
        images, labels = batch
        labels = labels.to(accelerator.device)
        logits = forward(model, images, accelerator)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
        return Loss(loss, (logits.argmax(-1) == labels).sum())

    def evaluate(
        self, model: AdaptedModel, store: ImageStore, accelerator: Accelerator, batch_size: int, workers: int = 0
    ) -> Scores:
        images, _ = loader(store, batch_size, workers=workers)
        return score(*predict_logits(model, images, accelerator), self.classes)


def forward(model: AdaptedModel, images: Tensor, accelerator: Accelerator) -> Tensor:
    """Logits (N, classes) for uint8 images (N, 3, S, S), in the accelerator's precision."""
    pixels = normalise(images, model.classifier.preprocessing, accelerator.device)
    with accelerator.autocast():
        return model.logits(pixels)


@torch.no_grad()
def predict_logits(
    model: AdaptedModel, images: DataLoader[Batch], accelerator: Accelerator
) -> tuple[float, Tensor, Tensor]:
    """(mean cross-entropy, logits (N, classes) in fp32, labels (N,)) on the CPU, in evaluation mode and in order.

    InputError if an output is not finite.
    """
    model.module.to(accelerator.device).eval()
    logits, labels = [], []
    for batch, target in track(images, "evaluating", len(images)):
        logits.append(forward(model, batch, accelerator).float().cpu())
        labels.append(target)
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    check_outputs(all_logits)
    return F.cross_entropy(all_logits, all_labels).item(), all_logits, all_labels
