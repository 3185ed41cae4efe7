"""Pre-train a small vision transformer on some digits, adapt it to the others by each method, compare.

Everything runs through ``fit`` and ``merge``, as a user's own run would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orthotune.demo.digits import write_digits
from orthotune.training import FitConfig, Metrics, fit, merge

#: timm's VisionTransformer with 16 tokens of 2x2 pixels: 0.2 M parameters.
MODEL: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "image_size": 8,
    "model_args": {"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4},
    "device": "cpu",
}
METHODS = ("linear", "lora", "goft", "qgoft", "rlrr", "aoft")
#: The best of two or three each on the opposite task (pre-trained on 5-9, adapted to 0-4), by accuracy on 0-4.
LEARNING_RATES = {"linear": 3e-2, "lora": 5e-3, "goft": 1e-1, "qgoft": 3e-2, "rlrr": 1e-2, "aoft": 3e-2}
HEAD_LEARNING_RATE = 1e-2


@dataclass
class Row:
    """One method's line of the table. Accuracy in [0, 1]; ``merge_difference`` relative to the largest logit."""

    method: str
    adapter_parameters: int
    trained_parameters: int
    test_accuracy: float
    step_seconds: float
    merge_difference: float


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def pretrain(folder: Path, digits: range, seed: int, epochs: int) -> tuple[Path, Metrics]:
    """Train the small model from random weights on ``digits``: (weights file, metrics)."""
    data = write_digits(folder / "source", digits, train=None, seed=seed)
    config = FitConfig(
        **MODEL,
        data=str(data),
        out=str(folder / "pretrained"),
        method="full",
        random_weights=True,
        validation="none",
        epochs=epochs,
        lr=3e-3,
        clip=1.0,
        seed=seed,
    )
    with one_thread():
        metrics = fit(config, overwrite=True, quiet=True)
    return folder / "pretrained" / "adapter" / "model.safetensors", metrics


def run_demo(
    folder: Path,
    *,
    methods: Iterable[str] = METHODS,
    seed: int = 0,
    shots: int = 10,
    epochs: int = 40,
    pretrain_epochs: int = 30,
    source: range = range(5),
    target: range = range(5, 10),
) -> Iterator[Metrics | Row]:
    """Yield the pre-training's Metrics, then a Row per method, as they are done; the runs are in ``folder``.

    ``shots`` labelled images a class adapt the model from the ``source`` digits to the ``target`` digits; all
    their other images test it.
    """
    weights, metrics = pretrain(folder, source, seed, pretrain_epochs)
    yield metrics
    data = write_digits(folder / "target", target, train=shots, seed=seed)
    for method in methods:
        out = folder / method
        config = FitConfig(
            **MODEL,
            data=str(data),
            out=str(out),
            method=method,
            weights=str(weights),
            validation="none",
            epochs=epochs,
            batch_size=25,
            lr=LEARNING_RATES.get(method),
            head_lr=None if method == "linear" else HEAD_LEARNING_RATE,
            seed=seed,
        )
        with one_thread():
            metrics = fit(config, overwrite=True, quiet=True)
            report = merge(out, folder / f"{method}-merged", overwrite=True)
        assert metrics.test is not None  # written above
        yield Row(
            method,
            metrics.parameters["adapter"],
            metrics.parameters["trainable"],
            metrics.test["top1"],
            metrics.step_seconds_median,
            report.max_difference,
        )
