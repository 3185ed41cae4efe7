"""The training loop: one epoch, one evaluation, nothing about files."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from orthotune import regularization_loss
from orthotune.data.images import EpochBatches, normalise
from orthotune.errors import InputError
from orthotune.models.adapt import AdaptedModel
from orthotune.progress import track
from orthotune.training.config import FitConfig
from orthotune.training.optimiser import schedule, set_learning_rate
from orthotune.training.rank_allocation import RankAllocation

Batch = tuple[Tensor, Tensor]


@dataclass
class Trainer:
    """One model, its optimizer (both prepared by ``accelerator``) and the training images."""

    config: FitConfig
    model: AdaptedModel
    optimiser: Any
    accelerator: Accelerator
    images: DataLoader[Batch]
    batches: EpochBatches
    step: int = 0

    def __post_init__(self) -> None:
        self.ranks = RankAllocation(self.model.module, self.config.epochs * self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one epoch."""
        return math.ceil(len(self.batches) / self.config.accumulate)

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], list[float]]:
        """Train epoch ``epoch`` (from 0): (mean loss and accuracy over its images, seconds of each update).

        All randomness (order, augmentation, dropout) follows from (seed, epoch), so an epoch can be repeated.
        """
        set_seed(_mix(self.config.seed, epoch))
        self.batches.epoch = epoch
        self.model.train()
        losses, correct, seconds = 0.0, 0, []
        windows = _windows(iter(self.images), self.config.accumulate)
        for window in track(windows, f"epoch {epoch + 1}/{self.config.epochs}", self.steps_per_epoch):
            start = time.perf_counter()
            loss, hits = self._update(window, epoch)
            seconds.append(time.perf_counter() - start)
            losses += loss * sum(len(labels) for _, labels in window)
            correct += hits
        count = self.batches.count
        return {"train_loss": losses / count, "train_accuracy": correct / count}, seconds

    def _update(self, window: list[Batch], epoch: int) -> tuple[float, int]:
        """One optimizer step over the batches of ``window``, each weighted by its share of the images."""
        total = sum(len(labels) for _, labels in window)
        warmup = round((self.config.warmup_epochs or 0) * self.steps_per_epoch)
        factor = schedule(self.step, self.config.epochs * self.steps_per_epoch, warmup)
        set_learning_rate(self.optimiser.param_groups, factor)
        self.optimiser.zero_grad()
        mean_loss = torch.zeros((), device=self.accelerator.device)
        correct = torch.zeros((), dtype=torch.long, device=self.accelerator.device)
        for images, labels in window:
            labels = labels.to(self.accelerator.device)
            logits = self._logits(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
            loss = (loss + regularization_loss(self.model.module)) * (len(labels) / total)
            self.accelerator.backward(loss)
            mean_loss += loss.detach()
            correct += (logits.argmax(-1) == labels).sum()
        value = mean_loss.item()
        if not math.isfinite(value):
            raise InputError(
                f"the loss became {value} at epoch {epoch + 1}, update {self.step + 1} (learning rate "
                f"{(self.config.lr or 0) * factor:.3g}): try a smaller --lr, --clip 1, or --precision bf16 or no "
                "instead of fp16"
            )
        if self.config.clip is not None:
            self.accelerator.clip_grad_norm_(list(self.model.module.parameters()), self.config.clip)
        self.optimiser.step()
        self.step += 1
        self.ranks.after(self.step)
        return value, int(correct.item())

    def _logits(self, images: Tensor) -> Tensor:
        return forward(self.model, images, self.accelerator)


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
    if not torch.isfinite(all_logits).all():
        raise InputError(
            "the model's outputs contain NaN or infinity: try a smaller --lr, or --precision no instead of fp16"
        )
    return F.cross_entropy(all_logits, all_labels).item(), all_logits, all_labels


def _windows(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while window := list(islice(batches, size)):
        yield window


def _mix(seed: int, epoch: int) -> int:
    """A 32-bit seed for (seed, epoch)."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def build_accelerator(device: str = "auto", precision: str = "no") -> Accelerator:
    """An Accelerator for the device and precision asked for; InputError where they do not exist."""
    # Accelerate keeps one state per process; a second run may want another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device not in ("auto", "cpu"):
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {device} is not available here: try --device auto") from error
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
    try:
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"--precision {precision} cannot be used on this device: {error}") from error
    if accelerator.num_processes > 1:
        raise InputError("orthotune runs in one process: start it directly, not with 'accelerate launch'")
    return accelerator
