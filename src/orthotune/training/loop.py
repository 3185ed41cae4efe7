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
from torch.utils.data import DataLoader

from orthotune import regularization_loss
from orthotune.data.images import EpochBatches
from orthotune.errors import InputError
from orthotune.models.adapt import AdaptedModel
from orthotune.progress import track
from orthotune.tasks.base import Task
from orthotune.training.config import FitConfig
from orthotune.training.optimiser import schedule, set_learning_rate
from orthotune.training.rank_allocation import RankAllocation


@dataclass
class Trainer:
    """One model, its optimizer (both prepared by ``accelerator``), its task and the training data."""

    config: FitConfig
    model: AdaptedModel
    optimiser: Any
    accelerator: Accelerator
    task: Task
    data: DataLoader[Any]
    batches: EpochBatches
    step: int = 0

    def __post_init__(self) -> None:
        self.ranks = RankAllocation(self.model.module, self.config.epochs * self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one epoch."""
        return math.ceil(len(self.batches) / self.config.accumulate)

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], list[float]]:
        """Train epoch ``epoch`` (from 0): (mean loss over its examples, and accuracy if the task has
        one; seconds of each update).

        All randomness (order, augmentation, dropout) follows from (seed, epoch), so an epoch can be repeated.
        """
        set_seed(_mix(self.config.seed, epoch))
        self.batches.epoch = epoch
        self.model.train()
        losses, count, seconds = 0.0, 0, []
        correct: int | None = 0
        windows = _windows(iter(self.data), self.config.accumulate)
        for window in track(windows, f"epoch {epoch + 1}/{self.config.epochs}", self.steps_per_epoch):
            start = time.perf_counter()
            loss, hits = self._update(window, epoch)
            seconds.append(time.perf_counter() - start)
            total = sum(map(self.task.count, window))
            losses += loss * total
            count += total
            correct = None if hits is None or correct is None else correct + hits
        accuracy = {} if correct is None else {"train_accuracy": correct / count}
        return {"train_loss": losses / count, **accuracy}, seconds

    def _update(self, window: list[Any], epoch: int) -> tuple[float, int | None]:
        """One optimizer step over the batches of ``window``, each weighted by its share of the examples."""
        counts = [self.task.count(batch) for batch in window]
        warmup = round((self.config.warmup_epochs or 0) * self.steps_per_epoch)
        factor = schedule(self.step, self.config.epochs * self.steps_per_epoch, warmup)
        set_learning_rate(self.optimiser.param_groups, factor)
        self.optimiser.zero_grad()
        mean_loss = torch.zeros((), device=self.accelerator.device)
        correct: Tensor | None = torch.zeros((), dtype=torch.long, device=self.accelerator.device)
        for batch, count in zip(window, counts, strict=True):
            found = self.task.loss(self.model, batch, self.accelerator)
            loss = (found.mean + regularization_loss(self.model.module)) * (count / sum(counts))
            self.accelerator.backward(loss)
            mean_loss += loss.detach()
            correct = None if correct is None or found.hits is None else correct + found.hits
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
        return value, None if correct is None else int(correct.item())


def _windows(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
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
