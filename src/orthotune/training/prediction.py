"""Class and probability of single images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orthotune.data import ImageStore, Split, loader
from orthotune.data.folder import EXTENSIONS, find_images
from orthotune.data.pictures import file_picture
from orthotune.errors import InputError
from orthotune.progress import quietly
from orthotune.tasks.image import predict_logits
from orthotune.training.loop import build_accelerator
from orthotune.training.run import open_run


@dataclass
class Prediction:
    """The most probable class of an image file."""

    path: str
    label: str
    probability: float


def predict(
    run: str | Path,
    images: list[str | Path],
    *,
    weights: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    quiet: bool = False,
) -> list[Prediction]:
    """Predictions of the run's model for files, and for every image below folders, in the order given."""
    paths: list[Path] = []
    for item in map(Path, images):
        if item.is_dir():
            found = sorted(find_images(item))
            if not found:
                raise InputError(f"folder {str(item)!r} holds no images ({', '.join(sorted(EXTENSIONS))})")
            paths += found
        elif item.is_file():
            paths.append(item)
        else:
            raise InputError(f"image {str(item)!r} does not exist")
    if not paths:
        raise InputError("no images given: name files or folders")
    finished = open_run(run, weights=weights)
    if finished.config.task != "image":
        raise InputError(
            f"{str(run)!r} is a run of the task {finished.config.task!r}, and predict is for images: score texts with "
            "orthotune evaluate, write responses with orthotune answer"
        )
    model = finished.model
    with quietly(quiet):
        split = Split(tuple(file_picture(path, str(path)) for path in paths), (0,) * len(paths))
        store = ImageStore(split, model.classifier.preprocessing, name="images")
        batches, _ = loader(store, batch_size)
        accelerator = build_accelerator(device, finished.config.precision)
        _, logits, _ = predict_logits(model, batches, accelerator)
    probability, label = logits.softmax(-1).max(-1)
    return [
        Prediction(str(path), finished.classes[i], p)
        for path, i, p in zip(paths, label.tolist(), probability.tolist(), strict=True)
    ]
