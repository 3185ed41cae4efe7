"""``fit``: one run from settings to result, written so that it can be killed and continued at any moment."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orthotune.errors import InputError
from orthotune.models import AdaptedModel, adapt, save_trained
from orthotune.models.build import parameter_counts
from orthotune.models.weights import check_finite, fingerprint
from orthotune.progress import quietly, say
from orthotune.tasks import task_class
from orthotune.tasks.base import Task
from orthotune.training.checkpoint import Progress, copy_tensors, load_checkpoint, save_checkpoint
from orthotune.training.config import FitConfig
from orthotune.training.curve import draw_curve
from orthotune.training.files import new_folder, sweep, write_json, write_text
from orthotune.training.loop import Trainer, build_accelerator
from orthotune.training.metrics import Metrics, machine, peak_memory, versions
from orthotune.training.optimiser import build_optimiser
from orthotune.training.run import RunFolder

_SHORT = {"accuracy": "acc"}

#: Called with each finished epoch's entry of the curve, after its checkpoint was written.
OnEpoch = Callable[[dict[str, float]], None]


def fit(
    config: FitConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    on_epoch: OnEpoch | None = None,
) -> Metrics:
    """Train as ``config`` says, write the run folder ``config.out`` and return what its metrics.json holds.

    ``resume`` continues an interrupted run with the same settings (or starts it, or returns the result if it is
    finished); ``overwrite`` replaces a run. ``on_epoch`` hears of every epoch, also of those before an interruption;
    what it raises ends the run, which can be continued. InputError for everything that can be wrong with the input;
    nothing that exists is touched before all input was checked.
    """
    folder = RunFolder(Path(config.out))
    continues = folder.claim(config, resume=resume, overwrite=overwrite)
    if continues and folder.is_finished():
        return Metrics.load(folder.metrics)
    with quietly(quiet):
        return FitRun(config, folder, continues).run(on_epoch)


class FitRun:
    """The parts of one run, built (and thereby checked) before anything is written."""

    def __init__(self, config: FitConfig, folder: RunFolder, continues: bool) -> None:
        self.config, self.folder = config, folder
        self.task = read_data(config)
        accelerator = build_accelerator(config.device, config.precision)
        classifier = self.task.build()
        self.preprocessing = self.task.preprocessing(classifier)
        self.base_sha256 = fingerprint(classifier.module, classifier.head)
        if config.grad_checkpointing:
            classifier.enable_checkpointing()
        self.model = adapt(classifier, config.method, config.adapter, config.seed)
        if not any(p.requires_grad for p in self.model.module.parameters()):
            raise InputError(f"method {config.method!r} trains nothing of {config.model}, which has no new head")
        self.stores, self.data = self.task.encode(classifier)
        self.progress = Progress()
        state = load_checkpoint(folder.checkpoint) if continues and folder.checkpoint.is_file() else None
        if state is not None:
            self._check_same_data(state["data_sha256"])
        self._claim_folder(continues)
        self.trainer = self._build_trainer(self.model, accelerator)
        if state is not None:
            if self.trainer.ranks.tuner is not None:
                raise InputError(
                    f"method {config.method!r} cannot resume: the scores of its ranks are not in the checkpoint; start "
                    "anew with --overwrite"
                )
            self._restore(state)

    def _check_same_data(self, sha256: str) -> None:
        if sha256 != self.data["sha256"]:
            raise InputError(
                f"the {self.task.unit} in {self.config.data!r} have changed since {str(self.folder.root)!r} was started"
                ": restore them, or start anew with --overwrite"
            )

    def _claim_folder(self, continues: bool) -> None:
        """Make the folder ours: from here on files are written."""
        self.folder.root.mkdir(parents=True, exist_ok=True)
        sweep(self.folder.root)
        if not continues:
            for old in (self.folder.metrics, self.folder.checkpoint):
                old.unlink(missing_ok=True)
            write_text(self.folder.config, self.config.to_yaml())

    def _build_trainer(self, model: AdaptedModel, accelerator: Any) -> Trainer:
        model.module.to(accelerator.device)
        optimiser = accelerator.prepare(build_optimiser(model, self.config))
        data, batches = self.task.loader(
            self.stores["train"],
            self.config.batch_size,
            shuffle=True,
            seed=self.config.seed,
            workers=self.config.num_workers,
        )
        return Trainer(self.config, model, optimiser, accelerator, self.task, data, batches)

    def _restore(self, state: dict[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self.model.load_trained_tensors(state["tensors"])
        self.trainer.optimiser.load_state_dict(state["optimizer"])
        self.trainer.step = self.progress.step
        if state["scaler"] is not None and self.trainer.accelerator.scaler is not None:
            self.trainer.accelerator.scaler.load_state_dict(state["scaler"])
        say(f"continuing {self.folder.root} after epoch {self.progress.epoch}")

    def run(self, on_epoch: OnEpoch | None = None) -> Metrics:
        """Train the remaining epochs, test, and write the result."""
        hear = on_epoch or (lambda entry: None)
        for entry in self.progress.curve:
            hear(dict(entry))
        for epoch in range(self.progress.epoch, self.config.epochs):
            self._epoch(epoch)
            hear(dict(self.progress.curve[-1]))
        self.model.load_trained_tensors(self.progress.best_tensors)
        metrics = self._metrics()
        with new_folder(self.folder.trained) as temporary:
            save_trained(self.model, temporary)
        write_json(self.folder.classes, self.task.classes)
        title = f"{self.config.method} on {self.config.model}"
        draw_curve(self.folder.curve, self.progress.curve, self.progress.best, title, self.task.metric)
        metrics.save(self.folder.metrics)
        self.folder.checkpoint.unlink(missing_ok=True)
        return metrics

    def _epoch(self, epoch: int) -> None:
        start = time.perf_counter()
        entry: dict[str, float] = {"epoch": epoch + 1}
        trained, seconds = self.trainer.train_epoch(epoch)
        entry.update(trained, lr=self.trainer.optimiser.param_groups[-1]["lr"])
        check_finite(self.model.trained_tensors(), f"after epoch {epoch + 1}")
        if "val" in self.stores:
            scores = self._score("val")
            entry.update({"val_loss": scores["loss"], f"val_{self.task.metric}": scores[self.task.test_metric]})
        entry.update(_defects(self.model.module))
        entry["seconds"] = time.perf_counter() - start
        done = self.progress
        if not done.best or self.task.rank(entry) >= self.task.rank(done.best):
            done.best = dict(entry)
            done.best_tensors = copy_tensors(self.model.trained_tensors())
        done.epoch, done.step = epoch + 1, self.trainer.step
        done.curve.append(entry)
        done.step_seconds += seconds
        done.peak_memory = max(done.peak_memory, peak_memory(self.trainer.accelerator.device)[0])
        save_checkpoint(
            self.folder.checkpoint,
            done,
            self.model.trained_tensors(),
            self.trainer.optimiser,
            self.trainer.accelerator.scaler,
            self.data["sha256"],
        )
        say(_line(entry, self.config.epochs, self.task.metric))

    def _score(self, split: str) -> dict[str, Any]:
        scores = self.task.evaluate(
            self.model,
            self.stores[split],
            self.trainer.accelerator,
            2 * self.config.batch_size,
            self.config.num_workers,
        )
        return scores.as_dict()

    def _metrics(self) -> Metrics:
        device = self.trainer.accelerator.device
        seconds = self.progress.step_seconds
        test = self._score("test") if "test" in self.stores else None
        return Metrics(
            config=dataclasses.asdict(self.config),
            seed=self.config.seed,
            versions=versions(),
            machine=machine(device),
            data=self.data,
            preprocessing=self.preprocessing,
            base_sha256=self.base_sha256,
            parameters=parameter_counts(self.model.module, self.model.classifier.head),
            step_seconds_median=statistics.median(seconds),
            train_seconds=sum(entry["seconds"] for entry in self.progress.curve),
            peak_memory_bytes=self.progress.peak_memory or None,
            peak_memory_kind=peak_memory(device)[1],
            curve=self.progress.curve,
            best={k: v for k, v in self.progress.best.items() if k != "seconds"},
            test=test,
            orthogonality_defect=_defects(self.model.module).get("defect"),
            metric=self.task.test_metric,
        )


def read_data(config: FitConfig) -> Task:
    """The task of a run with its data, checked but not yet decoded; InputError for what is wrong with them."""
    return task_class(config.task or "image").read(config)


def _line(entry: dict[str, float], epochs: int, metric: str) -> str:
    text = f"epoch {entry['epoch']:>3}/{epochs}  loss {entry['train_loss']:.4f}"
    if "train_accuracy" in entry:
        text += f"  acc {entry['train_accuracy']:.1%}"
    if "val_loss" in entry:
        text += f"  val loss {entry['val_loss']:.4f}  val {_SHORT.get(metric, metric)} {entry[f'val_{metric}']:.1%}"
    return f"{text}  lr {entry['lr']:.2e}  {entry['seconds']:.1f} s"


def _defects(module: torch.nn.Module) -> dict[str, float]:
    """The largest and the mean orthogonality defect of the adapted layers; nothing for methods that have none."""
    from orthotune import orthogonality_defect

    defects = orthogonality_defect(module).values()
    return {"defect": max(defects), "defect_mean": statistics.fmean(defects)} if defects else {}
