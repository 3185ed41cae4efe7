"""What the command looks at: a model by name, with or without a saved adapter, or a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.data import ImageStore, Split, loader
from orthotune.data.folder import EXTENSIONS, find_images
from orthotune.data.images import normalise
from orthotune.data.pictures import file_picture
from orthotune.errors import InputError
from orthotune.exporting.source import open_adapter
from orthotune.methods import get_method
from orthotune.models import Classifier, build_classifier
from orthotune.training.run import RunFolder, open_run

_SOME_CLASSES = 2  # of a head that is not looked at


@dataclass
class Subject:
    """``module`` is the model with its adapter or without; ``base`` that before a training without an adapter."""

    module: nn.Module
    classifier: Classifier
    method: str | None = None
    base: nn.Module | None = None


def open_subject(
    model: str,
    adapter: str | None = None,
    *,
    weights: str | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Subject:
    """Open the run ``model``; or the model of that name, with the adapter that lies in ``adapter``, a folder or a run.

    InputError for what cannot be opened, or does not go together.
    """
    if RunFolder(Path(model)).is_run():
        if adapter is not None or image_size is not None or model_args:
            raise InputError(
                f"{model!r} is a run, which has its own adapter, image size and arguments of the architecture: give "
                "it alone"
            )
        run = open_run(model, weights=weights)
        plain = not get_method(run.config.method).is_adapter
        base = run.task.build(weights).module if plain else None
        return Subject(run.model.module, run.model.classifier, run.config.method, base)
    options: dict[str, Any] = {"weights": weights, "image_size": image_size, "model_args": model_args}
    if adapter is None:
        classifier = build_classifier(model, _SOME_CLASSES, **options)
        return Subject(classifier.module, classifier)
    folder = RunFolder(Path(adapter))
    adapted = open_adapter(folder.trained if folder.is_run() else adapter, model, classes=_SOME_CLASSES, **options)
    return Subject(adapted.module, adapted.classifier, adapted.method)


def image_batches(folder: str, count: int, classifier: Classifier, seed: int = 0, size: int = 32) -> Iterator[Tensor]:
    """Yield normalised images (N, 3, S, S), as ``classifier`` takes them: ``count`` of those below ``folder``.

    Which ones is drawn by ``seed``. InputError for a folder that is not there or has fewer than two images.
    """
    if not Path(folder).is_dir():
        raise InputError(f"data folder {folder!r} does not exist")
    paths = sorted(find_images(Path(folder)))
    if min(count, len(paths)) < 2:
        raise InputError(
            f"features are compared over at least two images: {folder!r} has {len(paths)} "
            f"({', '.join(sorted(EXTENSIONS))}), and {count} were asked for"
        )
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[:count]
    chosen = tuple(file_picture(paths[i], str(paths[i])) for i in sorted(order.tolist()))
    store = ImageStore(Split(chosen, (0,) * len(chosen)), classifier.preprocessing, name="images")
    device = next(classifier.module.parameters()).device
    for images, _ in loader(store, size)[0]:
        yield normalise(images, classifier.preprocessing, device)
