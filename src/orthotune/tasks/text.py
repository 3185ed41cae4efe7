"""Classes of texts and pairs of texts, or a number for each (STS-B), scored as GLUE does."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional import matthews_corrcoef, pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import binary_f1_score, multiclass_accuracy
from transformers import DataCollatorWithPadding

from orthotune.models.adapt import AdaptedModel
from orthotune.models.text import TextPreprocessing
from orthotune.progress import track
from orthotune.tasks.base import Loss, check_outputs
from orthotune.tasks.encoded import Encoded, order_of
from orthotune.tasks.language import LanguageScores, LanguageTask
from orthotune.texts import TextData
from orthotune.training.config import FitConfig


class TextTask(LanguageTask):
    """Classification by cross-entropy; regression, where there are no classes, by the mean squared error."""

    head = "classes"
    default_length: ClassVar[int] = 128

    def __init__(self, config: FitConfig, classes: list[str], data: TextData | None = None) -> None:
        super().__init__(config, classes, data)
        self.metric = self.test_metric = data.metric if data else "accuracy" if classes else "correlation"

    def encoded(self, records: list[Any], how: TextPreprocessing) -> Encoded:
        pairs = records[0].second is not None
        tokens = self.tokenizer(
            [record.first for record in records],
            [record.second for record in records] if pairs else None,
            truncation=True,
            max_length=how.max_length,
        )
        return Encoded(
            [
                {**{name: column[i] for name, column in tokens.items()}, "labels": record.label}
                for i, record in enumerate(records)
            ],
            records,
        )

    def collate(self, features: list[dict[str, Any]]) -> Any:
        return DataCollatorWithPadding(self.tokenizer)(features)

    def count(self, batch: Any) -> int:
        return len(batch["labels"])

    def loss(self, model: AdaptedModel, batch: Any, accelerator: Accelerator) -> Loss:
        labels = batch["labels"].to(accelerator.device)
        logits = self.outputs(model, batch, accelerator)
        if not self.classes:
            return Loss(F.mse_loss(logits.squeeze(-1), labels.float()))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return Loss(loss, (logits.argmax(-1) == labels).sum())

    def evaluate(
        self, model: AdaptedModel, store: Encoded, accelerator: Accelerator, batch_size: int, workers: int = 0
    ) -> LanguageScores:
        logits = self.predict_logits(model, store, accelerator, batch_size, workers)
        labels = torch.tensor([record.label for record in store.records])
        if self.classes:
            loss = F.cross_entropy(logits, labels).item()
            metrics = class_scores(logits.argmax(-1), labels, len(self.classes))
        else:
            loss = F.mse_loss(logits.squeeze(-1), labels.float()).item()
            metrics = number_scores(logits.squeeze(-1), labels.float())
        return LanguageScores(len(labels), loss, metrics)

    @torch.no_grad()
    def predict_logits(
        self, model: AdaptedModel, store: Encoded, accelerator: Accelerator, batch_size: int, workers: int = 0
    ) -> Tensor:
        """Logits (N, classes) or (N, 1) in the order of the records, on the CPU; InputError if one is not finite."""
        model.module.to(accelerator.device).eval()
        data, batches = self.loader(store, batch_size, workers=workers)
        found = torch.cat([self.outputs(model, b, accelerator).cpu() for b in track(data, "evaluating", len(batches))])
        check_outputs(found)
        logits = torch.empty_like(found)
        logits[order_of(batches)] = found
        return logits


def class_scores(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Accuracy and the Matthews correlation; of two classes F1, of the second one."""
    scores = {"accuracy": multiclass_accuracy(predicted, labels, classes, average="micro").item()}
    # of equal predictions it is 0 by definition; torchmetrics gives other values
    same = bool((predicted == predicted[0]).all())
    scores["mcc"] = 0.0 if same else matthews_corrcoef(predicted, labels, "multiclass", num_classes=classes).item()
    if classes == 2:
        scores["f1"] = binary_f1_score(predicted, labels).item()
    return scores


def number_scores(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Pearson's and Spearman's correlation and their mean, ``correlation``; 0 where one side is constant."""
    if len(labels) < 2 or predicted.min() == predicted.max() or labels.min() == labels.max():
        return {"correlation": 0.0, "pearson": 0.0, "spearman": 0.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The variance of predictions or target is close to zero", UserWarning)
        pearson = pearson_corrcoef(predicted.double(), labels.double()).item()
    spearman = spearman_corrcoef(predicted, labels).item()
    return {"correlation": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}
