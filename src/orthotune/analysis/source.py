"""What the command looks at: a model by name, with or without a saved adapter, or a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthotune.analysis.features import Batch
from orthotune.data import ImageStore, Split, loader
from orthotune.data.folder import find_images
from orthotune.data.images import normalise
from orthotune.data.pictures import file_picture
from orthotune.errors import InputError
from orthotune.exporting.source import open_adapter
from orthotune.methods import get_method
from orthotune.models import Classifier
from orthotune.models.by_name import build_model, language_head
from orthotune.models.text import TextModel
from orthotune.tasks import TEXT_SCHEMES, task_of_data
from orthotune.texts.data import source
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
        classifier = build_model(model, _SOME_CLASSES, head=language_head(model), **options)
        return Subject(classifier.module, classifier)
    folder = RunFolder(Path(adapter))
    adapted = open_adapter(folder.trained if folder.is_run() else adapter, model, classes=_SOME_CLASSES, **options)
    return Subject(adapted.module, adapted.classifier, adapted.method)


def batches(data: str, count: int, classifier: Classifier, seed: int = 0, size: int = 32) -> Iterator[Batch]:
    """Yield ``count`` examples of ``data``, as ``classifier`` takes them; which ones is drawn by ``seed``.

    ``data`` is a folder of images, at any depth: (N, 3, S, S), normalised; or for a language model ``SCHEME:PATH``, all
    of its splits: a dict of (N, L) tensors. InputError for other data, and for fewer than two examples.
    """
    is_text = task_of_data(data, None) != "image"
    if isinstance(classifier, TextModel) != is_text:
        wanted = f"texts ({', '.join(f'{scheme}:PATH' for scheme in TEXT_SCHEMES)})" if not is_text else "images"
        raise InputError(f"--data is {data!r}, but {classifier.name} takes {wanted}")
    found: list[Any] = _texts(data) if is_text else _images(data)
    if min(count, len(found)) < 2:
        raise InputError(
            f"features are compared over at least two examples: {data!r} has {len(found)}, and {count} were asked for"
        )
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count]
    chosen = [found[i] for i in sorted(order.tolist())]
    device = next(classifier.module.parameters()).device
    if isinstance(classifier, TextModel):
        for start in range(0, len(chosen), size):
            yield classifier.tokens(chosen[start : start + size]).to(device)
        return
    pictures = tuple(file_picture(path, str(path)) for path in chosen)
    store = ImageStore(Split(pictures, (0,) * len(pictures)), classifier.preprocessing, name="images")
    for images, _ in loader(store, size)[0]:
        yield normalise(images, classifier.preprocessing, device)


def _images(folder: str) -> list[Path]:
    if not Path(folder).is_dir():
        raise InputError(f"data folder {folder!r} does not exist")
    return sorted(find_images(Path(folder)))


def _texts(data: str) -> list[tuple[str, ...]]:
    return [record.texts() for records in source(data).splits.values() for record in records]
