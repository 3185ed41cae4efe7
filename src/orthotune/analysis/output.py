"""The folder of an analysis: everything as JSON, one line per layer as CSV, and the plots."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any, Literal

from orthotune.analysis.inspection import Analysis, LayerAnalysis
from orthotune.analysis.matrices import Matrix
from orthotune.training.files import new_folder, write_bytes, write_text

FORMAT_VERSION = 1

#: Columns of layers.csv about how far a layer moved: the numbers of a Movement.
MOVED = (
    "relative",
    "norm_part",
    "angle_part",
    "turn",
    "spectral",
    "rank",
    "stable_rank",
    "bias",
    "directions",
    "left",
    "right",
    "change_left",
    "change_right",
)


def write_analysis(
    analysis: Analysis, folder: Path, about: dict[str, Any] | None = None, form: Literal["png", "svg"] = "png"
) -> None:
    """Write ``analysis.json``, ``layers.csv`` and the plots into ``folder``, which appears complete or not at all.

    ``about`` are further facts for the JSON file: what was looked at.
    """
    from orthotune.analysis.plots import draw

    with new_folder(folder) as temporary:
        write_text(temporary / "analysis.json", to_json(analysis, about))
        write_text(temporary / "layers.csv", to_csv(analysis))
        for name, picture in draw(analysis, form).items():
            write_bytes(temporary / f"{name}.{form}", picture)


def to_json(analysis: Analysis, about: dict[str, Any] | None = None) -> str:
    """Return the analysis as JSON, with lists of numbers on one line each."""
    values = {"format_version": FORMAT_VERSION, **(about or {}), **dataclasses.asdict(analysis)}
    text = json.dumps(values, indent=1, allow_nan=False)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def to_csv(analysis: Analysis) -> str:
    """Return the analysis without histograms and singular values: one line per layer."""
    rows = [_row(layer) for layer in analysis.layers]
    head = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _row(layer: LayerAnalysis) -> dict[str, Any]:
    row: dict[str, Any] = {"name": layer.name, "block": layer.block, "kind": layer.kind}
    matrices = {"weight": layer.weight, "adapted": layer.adapted, **layer.projections}
    for name, matrix in matrices.items():
        row.update(_numbers(name.replace(" ", "_"), matrix))
    moved = None if layer.movement is None else dataclasses.asdict(layer.movement)
    row.update({f"moved_{key}": None if moved is None else moved[key] for key in MOVED})
    return {**row, "defect": layer.defect, "note": layer.note}


def _numbers(name: str, matrix: Matrix | None) -> dict[str, Any]:
    if matrix is None:
        return {}
    row: dict[str, Any] = {f"{name}_out": matrix.shape[0], f"{name}_in": matrix.shape[1]}
    for side, angles in (("rows", matrix.rows), ("columns", matrix.columns)):
        for key in ("mean", "deviation", "from_right", "chance", "cosine"):
            row[f"{name}_{side}_{key}"] = getattr(angles, key)
    row[f"{name}_energy"] = matrix.rows.energy
    for key in ("row_norm", "column_norm", "frobenius", "spectral", "defect"):
        row[f"{name}_{key}"] = getattr(matrix, key)
    return row
