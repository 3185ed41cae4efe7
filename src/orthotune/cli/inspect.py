"""``orthotune inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from orthotune.cli.parser import Parser, add_base_options
from orthotune.cli.tables import Rows, TableFormat, text
from orthotune.errors import InputError
from orthotune.progress import quietly

_DESCRIPTION = """What an adapter did to a model, layer by layer: angles, spectra, subspaces, movement, features.

  orthotune inspect runs/aoft --out analysis/
  orthotune inspect vit_base_patch16_224 ADAPTER --data IMAGES --out analysis/
  orthotune inspect deit_tiny_patch16_224 --weights deit_tiny.safetensors
  orthotune inspect runs/cola --data glue:glue/cola --out analysis/

MODEL is a finished run, or a model by name; ADAPTER a folder of a PEFT adapter, or a run, for a model by name. --out
writes analysis.json, layers.csv and plots; --data also compares features (CKA).

The table: angles in degrees between rows (columns) of the pre-trained weight, mean and standard deviation, and the
deviation of random directions; the same between the long vectors of the adapter's projections; how far the weight
moved, and how much of that (squared) is turning of its rows; overlap of the leading left (right) singular vectors of
the adapted weight with the pre-trained ones'; change of the hyperspherical energy; orthogonality defect."""


def run(arguments: list[str]) -> int:
    """Measure, print the table, write the folder."""
    options = _read(arguments)
    if options.out is not None and Path(options.out).exists():
        raise InputError(f"--out {options.out!r} already exists: give a new folder")
    from orthotune.analysis import inspect
    from orthotune.analysis.output import write_analysis
    from orthotune.analysis.source import batches, open_subject

    with quietly(options.quiet):
        subject = open_subject(
            options.model,
            options.adapter,
            weights=options.weights,
            image_size=options.image_size,
            model_args=options.model_args,
        )
        subject.module.to(_device(options.device))
        examples = None
        if options.data is not None:
            examples = batches(options.data, options.examples, subject.classifier, options.seed)
        analysis = inspect(
            subject.module,
            base=subject.base,
            layers=options.layers,
            top=options.top,
            limit=options.limit,
            seed=options.seed,
            batches=examples,
            forward=subject.classifier.logits,
        )
    print(text(*_table(analysis), options.format), end="")
    if options.format == "table":
        for line in _remarks(analysis):
            print(line)
    if options.out is not None:
        about = {"model": options.model, "adapter": options.adapter, "method": subject.method, "data": options.data}
        write_analysis(analysis, Path(options.out), about, options.plots)
        if options.format == "table":
            print(f"written to {options.out}")
    return 0


def _read(arguments: list[str]) -> Any:
    parser = Parser("orthotune inspect", _DESCRIPTION)
    parser.usage = "orthotune inspect MODEL [ADAPTER] [options]"
    parser.add_argument("model", metavar="MODEL", help="a run folder; or timm name, transformers hub id or directory")
    parser.add_argument("adapter", metavar="ADAPTER", nargs="?", help="a folder of a PEFT adapter, or a run folder")
    add_base_options(parser, required=False, name=False)
    parser.option(parser, "--layers", str | None, None, "only layers whose name contains this regular expression")
    parser.option(parser, "--top", int, 8, "leading singular vectors that overlaps are of")
    parser.option(
        parser, "--limit", int, 4096, "measure angles between so many drawn rows or columns where there are more"
    )
    parser.option(parser, "--data", str | None, None, "images (a folder) or texts (SCHEME:PATH) to compare features on")
    parser.option(parser, "--examples", int, 64, "of them")
    parser.option(parser, "--seed", int, 0, "of what is drawn: rows, columns and examples")
    parser.option(parser, "--out", str | None, None, "folder to create")
    parser.option(parser, "--plots", Literal["png", "svg"], "png", "format of the plots in --out")
    parser.option(parser, "--format", TableFormat, "table", "how to print the table")
    parser.option(parser, "--device", str, "auto", "auto, cpu, cuda, ...")
    parser.option(parser, "--quiet", bool, False, "no progress bars")
    return parser.read(arguments)


def _device(name: str) -> Any:
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.zeros(1, device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"--device {name} is not available here, or has no float64: try --device cpu") from error
    return device


def _table(analysis: Any) -> tuple[list[str], Rows]:
    """The columns that this analysis has something for."""
    names = list(dict.fromkeys(name for layer in analysis.layers for name in layer.projections))
    columns: dict[str, list[str]] = {"layer": [layer.name for layer in analysis.layers]}
    columns["shape"] = [f"{x.weight.shape[0]}x{x.weight.shape[1]}" if x.weight else "" for x in analysis.layers]
    for side in ("rows", "columns"):
        columns[side] = [_angles(getattr(x.weight, side), True) if x.weight else "" for x in analysis.layers]
    for name in names:
        columns[name] = [_long_vectors(x.projections.get(name)) for x in analysis.layers]
    moved = [layer.movement for layer in analysis.layers]
    columns["moved, %"] = [f"{100 * m.relative:.2g}" if m else "" for m in moved]
    columns["turning, %"] = [f"{100 * (m.angle_part / m.relative) ** 2:.0f}" if m and m.relative else "" for m in moved]
    columns["overlap"] = [f"{m.left:.2f} ({m.right:.2f})" if m else "" for m in moved]
    columns["energy"] = [_energy(layer) for layer in analysis.layers]
    columns["defect"] = ["" if layer.defect is None else f"{layer.defect:.1e}" for layer in analysis.layers]
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    return list(columns), list(zip(*columns.values(), strict=True))


def _angles(angles: Any, with_chance: bool = False) -> str:
    if angles.mean is None:
        return "-"
    chance = f" ({angles.chance:.1f})" if with_chance else ""
    return f"{angles.mean:.1f} ± {angles.deviation:.1f}{chance}"


def _long_vectors(matrix: Any) -> str:
    """The angles between the vectors of which there are fewer, which are the longer ones."""
    if matrix is None:
        return ""
    return _angles(matrix.rows if matrix.shape[0] <= matrix.shape[1] else matrix.columns)


def _energy(layer: Any) -> str:
    pair = [m.rows.energy for m in (layer.weight, layer.adapted) if m is not None]
    return f"{100 * (pair[1] / pair[0] - 1):+.2g}%" if len(pair) == 2 and None not in pair else ""


def _remarks(analysis: Any) -> list[str]:
    """What the table does not say by itself."""
    lines = []
    sampled = [
        layer.name
        for layer in analysis.layers
        for matrix in (layer.weight, *layer.projections.values())
        if matrix and (matrix.rows.sampled or matrix.columns.sampled)
    ]
    if sampled:
        count = len(set(sampled))
        limit, seed = (analysis.settings[key] for key in ("limit", "seed"))
        lines.append(f"angles of {count} layers are between {limit} drawn rows or columns (seed {seed})")
    for note in dict.fromkeys(layer.note for layer in analysis.layers if layer.note):
        lines.append(f"no adapted weight: {note}")
    if analysis.cka is not None and any(x.movement or x.projections for x in analysis.layers):
        same = [analysis.cka.values[i][i] for i in range(len(analysis.cka.blocks))]
        lines.append(
            f"CKA of features on {analysis.cka.samples} examples, pre-trained and adapted, after the same block: "
            f"{min(same):.3f} to {max(same):.3f}"
        )
    return lines
