"""The merged model as a graph that runs without its Python code: ONNX, or a torch.export program.

Both take ``pixel_values`` (N, 3, H, W), normalised images of any number, and give ``logits`` (N, classes). The file is
put in place only after its logits were compared with the adapted model's. It carries, as JSON under ``orthotune``,
the class names and the preprocessing.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.models import AdaptedModel, Classifier
from orthotune.models.text import TextModel
from orthotune.training.files import TEMPORARY
from orthotune.training.merging import TOLERANCE, merged_module, relative_difference

Run = Callable[[Tensor], Tensor]


class _Logits(nn.Module):
    """The plain model as a function of the images alone."""

    def __init__(self, classifier: Classifier, module: nn.Module) -> None:
        super().__init__()
        self.classifier, self.module = classifier, module

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier.logits(self.module, pixel_values)


def export_onnx(model: AdaptedModel, out: str | Path, classes: list[str] | None = None) -> float:
    """Write the merged model as ONNX; return how far its logits are from the model's, relative to the largest.

    Raises InputError if the ``onnx`` extra is missing, the model cannot be exported, or the logits differ too much.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped,import-not-found]
        import onnxscript  # type: ignore[import-untyped,import-not-found]  # noqa: F401  what torch.onnx needs
    except ImportError as error:
        raise InputError(f"export to ONNX needs {error.name}: pip install 'orthotune[onnx]'") from error
    plain, images, batch = _prepare(model)
    with _new_file(Path(out)) as file:
        with _quiet("ONNX"):
            program: Any = torch.onnx.export(
                plain,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=["pixel_values"],
                output_names=["logits"],
                verbose=False,
            )
            program.model.metadata_props["orthotune"] = _description(model, classes)
            program.save(str(file))
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

        def run(x: Tensor) -> Tensor:
            return torch.from_numpy(session.run(["logits"], {"pixel_values": x.numpy()})[0])

        return _checked(plain, run, images, "ONNX")


def export_program(model: AdaptedModel, out: str | Path, classes: list[str] | None = None) -> float:
    """Write the merged model for ``torch.export.load``; return and raise as :func:`export_onnx` does."""
    plain, images, batch = _prepare(model)
    with _new_file(Path(out)) as file:
        with _quiet("torch.export"):
            program = torch.export.export(plain, (images,), dynamic_shapes=({0: batch},))
            torch.export.save(program, file, extra_files={"orthotune": _description(model, classes)})
            loaded = torch.export.load(file).module()
        return _checked(plain, loaded, images, "torch.export")


def _prepare(model: AdaptedModel) -> tuple[_Logits, Tensor, Any]:
    """(the plain model, a batch of random images, the symbol for the number of images)."""
    if isinstance(model.classifier, TextModel):
        raise InputError(
            f"{model.classifier.name} is a language model, and only image classifiers are exported as a graph: write "
            "the plain model with orthotune merge, which tools for transformers export"
        )
    module, _ = merged_module(model)
    size = model.classifier.preprocessing.size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    return _Logits(model.classifier, module.cpu()).eval().requires_grad_(False), images, torch.export.Dim("batch")


def _description(model: AdaptedModel, classes: list[str] | None) -> str:
    return json.dumps(
        {
            "model": model.classifier.name,
            "method": model.method,
            "classes": classes,
            "preprocessing": asdict(model.classifier.preprocessing),
        }
    )


def _checked(plain: nn.Module, run: Run, images: Tensor, what: str) -> float:
    """Return the largest difference over batches of two sizes, neither of them special to the tracer."""
    with torch.no_grad():
        found = max(relative_difference(plain(x), run(x)) for x in (images, images[:1]))
    if not found <= TOLERANCE:
        raise InputError(
            f"the {what} model differs from the adapted one by {found:.2g} of the largest logit (allowed "
            f"{TOLERANCE:g}); nothing was written"
        )
    return found


@contextmanager
def _quiet(what: str) -> Iterator[None]:
    """Turn whatever an exporter raises about a model into an InputError, and hide its notes on its own internals."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:  # the exporters raise errors of many kinds, their own among them
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"the model cannot be exported to {what}: {reason}") from error


@contextmanager
def _new_file(out: Path) -> Iterator[Path]:
    """Give a path to write, which becomes ``out`` at the end with whatever was written beside it, or is removed."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=TEMPORARY) as folder:
        yield Path(folder, out.name)
        for file in sorted(Path(folder).iterdir(), key=lambda path: path.name == out.name):  # the model after its data
            os.replace(file, out.with_name(file.name))
