"""Accuracy of a finished run on a split of any folder with its classes."""

from __future__ import annotations

from pathlib import Path

from orthotune.data import ImageStore, loader
from orthotune.data.folder import read_split
from orthotune.errors import InputError
from orthotune.progress import quietly
from orthotune.training.loop import build_accelerator, predict_logits
from orthotune.training.metrics import Scores, score
from orthotune.training.run import open_run


def evaluate(
    run: str | Path,
    data: str | Path,
    split: str = "test",
    *,
    weights: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    quiet: bool = False,
) -> Scores:
    """Scores of the run's model on ``data/split``; classes are matched by folder name.

    InputError for a folder, class or image that cannot be used, and for outputs that are not finite.
    """
    finished = open_run(run, weights=weights)
    if not Path(data).is_dir():
        raise InputError(f"data folder {str(data)!r} does not exist")
    files = read_split(Path(data), split, tuple(finished.classes))
    model = finished.model
    with quietly(quiet):
        store = ImageStore(files, model.classifier.preprocessing, cache_bytes=1 << 30, name=f"{split} images")
        images, _ = loader(store, batch_size)
        accelerator = build_accelerator(device, finished.config.precision)
        loss, logits, labels = predict_logits(model, images, accelerator)
    return score(loss, logits, labels, finished.classes)
