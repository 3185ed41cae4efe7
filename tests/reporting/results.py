"""Results written to disk as a sweep and ``fit`` write them, with numbers that a test chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthotune.experiments.results import Result
from orthotune.training.metrics import Metrics


def write_run(
    root: Path,
    name: str,
    task: str,
    seed: int,
    score: float | None,
    *,
    method: str | None = None,
    phase: Any = "final",
    status: Any = "finished",
    error: str | None = None,
    settings: dict[str, Any] | None = None,
    parameters: int = 1000,
    step: float = 0.1,
    defect: list[float] | None = None,
    curve: list[float] | None = None,
    model: str = "deit_tiny_patch16_224",
    **scores: float,
) -> Path:
    """One run below ``root``: trial.json, and metrics.json unless it failed. Scores are in [0, 1]."""
    settings = settings or {}
    config = {"model": model, "data": f"data/{task}", "method": method or name, "epochs": 3, "lr": 0.01, "adapter": {}}
    for key, value in settings.items():
        part, _, field = key.rpartition(".")
        (config[part] if part else config)[field] = value
    given = "-".join(str(value) for value in settings.values())
    path = root / "runs" / f"{phase}-{name}-{task}-{seed}-{given}".replace("/", "_").replace("<", "_").replace(">", "_")
    Result(
        id=path.name,
        phase=phase,
        task=task,
        name=name,
        method=method or name,
        settings=settings,
        seed=seed,
        status=status,
        metric="top1",
        error=error,
        score=score,
        seconds=3.0,
        config=config,
        path=path,
    ).save()
    if status == "finished":
        entries = [
            {"epoch": i + 1, "train_loss": 1 / (i + 1), "train_accuracy": accuracy, "seconds": 1.0}
            | ({"val_accuracy": accuracy - 0.05, "val_loss": 2 / (i + 1)} if phase == "search" else {})
            | ({"defect": defect[i], "defect_mean": defect[i] / 2} if defect else {})
            for i, accuracy in enumerate(curve or [0.4, 0.6, 0.7])
        ]
        Metrics(
            config=config,
            seed=seed,
            versions={"python": "3.11", "torch": "2.6.0"},
            machine={"system": "Linux", "cpus": 2, "device": "cpu"},
            data={"train": {"images": 800}, "test": {"images": 100}, "sha256": f"{task}0123456789abcdef"},
            preprocessing={},
            base_sha256="0" * 64,
            parameters={"adapter": parameters, "head": 100, "trainable": parameters + 100, "total": 10**6},
            step_seconds_median=step,
            train_seconds=30 * step,
            peak_memory_bytes=2**28,
            peak_memory_kind="max resident size of the process",
            curve=entries,
            best={"epoch": 3},
            test={"images": 100, "loss": 1.0, "top1": score, **scores} if phase == "final" else None,
            orthogonality_defect=defect[-1] if defect else None,
        ).save(path / "metrics.json")
    return path


def angles(peak: int) -> dict[str, Any]:
    """Angles of which most are at ``peak`` degrees."""
    return {"histogram": [100 if i == peak else 1 for i in range(180)], "pairs": 279, "mean": float(peak)}


def layer(name: str, block: int, kind: str) -> dict[str, Any]:
    """A layer as in analysis.json, of what the report reads there."""

    def matrix(peak: int, scale: float) -> dict[str, Any]:
        values = [scale / (i + 1) for i in range(300)]
        return {"rows": angles(peak), "columns": angles(peak + 1), "singular_values": values}

    moved = {"relative": 0.1 * (block + 1), "norm_part": 0.01, "angle_part": 0.09, "turn": 2.0}
    return {
        "name": name,
        "block": block,
        "kind": kind,
        "weight": matrix(90, 10),
        "adapted": matrix(89, 11),
        "projections": {"lora_A": matrix(70, 1)},
        "movement": moved,
    }
