"""``orthotune export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from orthotune.cli.parser import Parser, add_base_options, check_new_file
from orthotune.errors import InputError

_DESCRIPTION = """Write a run, or a saved adapter, for other tools.

  orthotune export --to lora --run runs/goft --rank 16 --out lora/
  orthotune export --to lora --adapter DIR --model vit_base_patch16_224 --tolerance 0.1 --out lora/
  orthotune export --to onnx --run runs/goft --out model.onnx

lora          a plain LoRA checkpoint, which PEFT loads without orthotune; the error of each layer is printed
onnx          the merged model; needs the extra: pip install 'orthotune[onnx]'
torch-export  the merged model for torch.export.load
hub           the folder that orthotune push uploads: the adapter and its model card"""


def run(arguments: list[str]) -> int:
    """Write what --to says."""
    options = _parser().read(arguments)
    _check(options)
    from orthotune.exporting.source import open_adapter
    from orthotune.training.run import open_run

    finished = open_run(options.run, weights=options.weights) if options.run else None
    if finished is not None:
        model, classes = finished.model, finished.classes
    else:
        model = open_adapter(
            options.adapter,
            options.model,
            weights=options.weights,
            image_size=options.image_size,
            model_args=options.model_args,
        )
        classes = None
    if options.to == "lora":
        _lora(model, options)
    elif options.to == "hub" and finished is not None:
        from orthotune.exporting.hub import write_hub_folder

        write_hub_folder(finished, Path(options.out), license=options.license, base_model=options.base_model)
    else:
        from orthotune.exporting.graph import export_onnx, export_program

        write = export_onnx if options.to == "onnx" else export_program
        print(f"exported and adapted logits differ by {write(model, options.out, classes):.1e} of the largest")
    print(f"written to {options.out}")
    return 0


def _parser() -> Parser:
    parser = Parser("orthotune export", _DESCRIPTION)
    parser.option(parser, "--to", Literal["lora", "onnx", "torch-export", "hub"], None, "what to write", required=True)
    parser.option(
        parser, "--out", str, None, "file (onnx, torch-export) or folder (lora, hub) to create", required=True
    )
    parser.option(parser, "--run", str | None, None, "run folder")
    parser.option(parser, "--adapter", str | None, None, "folder of a saved adapter with its head, instead of --run")
    add_base_options(parser, required=False)
    parser.option(parser, "--overwrite", bool, False, "replace the file --out")
    lora = parser.add_argument_group("lora")
    parser.option(lora, "--rank", int | None, None, "rank of every layer")
    parser.option(lora, "--tolerance", float | None, None, "instead: the largest relative error of a layer")
    parser.option(
        lora,
        "--extras",
        Literal["keep", "refuse", "drop"],
        "keep",
        "bias shifts, norms and heads: keep (for PEFT), refuse, or drop (what vLLM takes)",
    )
    hub = parser.add_argument_group("hub")
    parser.option(hub, "--license", str | None, None, "the Hub's identifier of a licence, such as apache-2.0")
    parser.option(hub, "--base-model", str | None, None, "the base model's id on the Hub, if not that of the run")
    return parser


def _check(options: Any) -> None:
    if (options.run is None) == (options.adapter is None):
        raise InputError("give one of --run and --adapter")
    if options.adapter is not None and options.model is None:
        raise InputError("--adapter needs --model: the name or directory of its base model")
    if options.adapter is not None and options.to == "hub":
        raise InputError("--to hub needs --run: the card states the data and the results, which an adapter has not")
    if options.run is not None and (options.model or options.image_size or options.model_args):
        raise InputError("--model, --image-size and --model-args go with --adapter: a run has its own")
    if options.to in ("onnx", "torch-export"):
        check_new_file(options.out, options.overwrite)
    elif Path(options.out).exists():
        raise InputError(f"--out {options.out!r} already exists: give a new folder")


def _lora(model: Any, options: Any) -> None:
    from peft import PeftModel

    from orthotune.exporting import export_to_lora, total_error
    from orthotune.exporting.source import lora_difference

    if not isinstance(model.module, PeftModel):
        raise InputError(f"method {model.method!r} has no adapter to write as a LoRA: use orthotune merge")
    errors = export_to_lora(
        model.module, options.out, rank=options.rank, tolerance=options.tolerance, extras=options.extras
    )
    table = Table("layer", box=None)
    for name in ("rank", "relative error"):
        table.add_column(name, justify="right")
    for error in errors:
        table.add_row(error.layer, str(error.rank), f"{error.relative:.1e}")
    Console().print(table, highlight=False)
    worst = max(errors, key=lambda e: e.relative)
    print(f"all layers together {total_error(errors):.1e}; the worst, {worst.layer}, {worst.relative:.1e}")
    print(f"LoRA and adapted logits differ by {lora_difference(model, options.out):.1e} of the largest")
