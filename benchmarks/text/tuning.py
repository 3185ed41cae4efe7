"""One run: a pre-trained encoder with a classifier under a method, trained for some epochs and scored once."""

from __future__ import annotations

import math
import random
import statistics
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from glue import Batches, Task
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from orthotune import orthogonality_defect, regularization_loss
from orthotune.errors import InputError
from orthotune.models import AdaptedModel, Classifier, Preprocessing, adapt
from orthotune.models.build import parameter_counts
from orthotune.training import FitConfig
from orthotune.training.optimiser import build_optimiser, schedule, set_learning_rate

HEAD = ("pooler", "classifier", "pre_classifier", "score")


@dataclass(frozen=True)
class Recipe:
    """What determines a run besides the pre-trained model and the data."""

    method: str
    lr: float
    head_lr: float
    seed: int
    epochs: int
    batch_size: int
    max_length: int
    precision: str = "no"
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the updates
    clip: float = 1.0


def build(folder: Path, method: str, seed: int) -> AdaptedModel:
    """Return the model in ``folder`` with two classes under ``method``.

    The head is what comes after the encoder, a stored pooler included: it is trained under every method, because a
    model that was pre-trained with another pooling has not trained it. InputError if the model cannot be used.
    """
    set_seed(seed)
    try:
        module = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"--model {str(folder)!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    head = tuple(name for name, _ in module.named_modules() if name.rpartition(".")[2] in HEAD)
    unused = Preprocessing(size=0, mean=(), std=())  # of images
    return adapt(Classifier(module, folder.name, "transformers", head, unused), method, {}, seed)


def logits(model: AdaptedModel, batch: dict[str, Tensor], accelerator: Accelerator) -> Tensor:
    """Return the logits (N, 2) of a batch, in the accelerator's precision and place."""
    inputs = {name: tensor.to(accelerator.device) for name, tensor in batch.items() if name != "labels"}
    with accelerator.autocast():
        found: Tensor = model.module(**inputs).logits
    return found.float()


def loss(model: AdaptedModel, batch: dict[str, Tensor], accelerator: Accelerator) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return F.cross_entropy(logits(model, batch, accelerator), batch["labels"].to(accelerator.device))


def optimiser(model: AdaptedModel, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW with the groups of ``orthotune fit``."""
    values = {name: getattr(recipe, name) for name in ("method", "lr", "head_lr", "weight_decay")}
    return build_optimiser(model, FitConfig(model=model.classifier.name, data="", out="", **values))


def run(
    folder: Path, recipe: Recipe, task: Task, train: Batches, evaluate: Batches, accelerator: Accelerator
) -> dict[str, Any]:
    """Train on ``train``, score on ``evaluate`` at the end, and return the result as JSON has it.

    The seed determines the head, the adapter, dropout and the order of the batches. Training ends early, and
    ``diverged`` is true, when a loss is not finite.
    """
    model = build(folder, recipe.method, recipe.seed)
    model.module.to(accelerator.device)
    start = time.perf_counter()
    losses, seconds = _train(model, recipe, train, accelerator)
    trained = time.perf_counter()
    score, evaluation_loss = _evaluate(model, task, evaluate, accelerator)
    return {
        "score": score,
        "loss": evaluation_loss,
        "train_loss_last_epoch": statistics.mean(losses[-len(train) :]),
        "diverged": len(losses) < recipe.epochs * len(train),
        "parameters": parameter_counts(model.module, model.classifier.head),
        "orthogonality_defect": max(orthogonality_defect(model.module).values(), default=None),
        "updates": len(losses),
        "step_seconds_median": statistics.median(seconds),
        "train_seconds": trained - start,
        "evaluation_seconds": time.perf_counter() - trained,
    }


def _train(
    model: AdaptedModel, recipe: Recipe, batches: Batches, accelerator: Accelerator
) -> tuple[list[float], list[float]]:
    """Return the loss and the seconds of each update."""
    adamw = optimiser(model, recipe)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    updates = recipe.epochs * len(batches)
    losses: list[float] = []
    seconds: list[float] = []
    set_seed(recipe.seed)
    order = random.Random(recipe.seed)
    model.train()
    for batch in chain.from_iterable(batches.shuffled(order) for _ in range(recipe.epochs)):
        start = time.perf_counter()
        set_learning_rate(adamw.param_groups, schedule(len(losses), updates, round(recipe.warmup * updates)))
        adamw.zero_grad()
        value = loss(model, batch, accelerator)
        if not value.isfinite():
            break
        (value + regularization_loss(model.module)).backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        adamw.step()
        losses.append(value.item())
        seconds.append(time.perf_counter() - start)
    return losses, seconds


@torch.no_grad()
def _evaluate(
    model: AdaptedModel, task: Task, batches: Batches, accelerator: Accelerator
) -> tuple[float, float | None]:
    """Return the task's metric and the mean cross-entropy, None if that is not finite."""
    model.module.eval()
    found = torch.cat([logits(model, batch, accelerator).cpu() for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    value = F.cross_entropy(found, labels).item()
    return task.score(found, labels), value if math.isfinite(value) else None
