"""The sections of the benchmark: which cases each has, and how a case is measured."""

from __future__ import annotations

import dataclasses
import gc
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from contestants import AUTHORS, CONTESTANTS, FLOOR, RANKED, family, find, reason
from layer_case import LayerCase, RotationCase
from memory import NotMeasurableError, gpu_peak, process_peak, saved_bytes
from model_case import LlamaCase, VitCase
from timing import interleave, summary
from workload import Case, Settings, Workload

from orthotune.progress import say

SCALING = ["goft", "qgoft", "rlrr", "aoft", "lora"]
TOKENS_WIDTH = 768  # of the layer on which the number of tokens grows
RANK_WIDTH = 1024  # of the layer on which the bottleneck grows
DEPTH_MODEL = "vit_tiny_patch16_224"


@dataclass(frozen=True)
class Task:
    """One case and its contestants; in the scaling section also what grows (``sweep``), on what, and how far."""

    section: str
    case: Case
    names: list[str]
    sweep: str | None = None
    title: str | None = None
    value: int | None = None


def tasks(args: Namespace) -> Iterator[Task]:
    """Yield what the command line asks for."""
    names = args.only or [*CONTESTANTS, *(AUTHORS if args.authors else ())]
    names = [name for name in names if name != FLOOR]
    sections = ["layers", "models", "scaling"] if args.section == "all" else [args.section]
    if "layers" in sections:
        for in_features, out_features in args.shapes:
            yield Task("layers", LayerCase(in_features, out_features, args.tokens), names)
    if "models" in sections:
        hidden, intermediate = args.llama
        yield Task("models", VitCase(args.vit, args.batch), names)
        yield Task("models", LlamaCase(hidden, intermediate, args.llama_tokens, args.llama_layers), names)
    if "scaling" in sections:
        yield from _sweeps(args, args.only or SCALING)


def _sweeps(args: Namespace, names: list[str]) -> Iterator[Task]:
    names = [name for name in names if name != FLOOR]
    families = {family(name) for name in names}
    tokens = f"{args.tokens} tokens"
    for sweep, values in args.sweep.items():
        for value in values:
            chosen = names
            case: Case
            match sweep:
                case "width":
                    case = LayerCase(value, value, args.tokens)
                    title = f"layer D → D, {tokens}"
                case "tokens":
                    case = LayerCase(TOKENS_WIDTH, TOKENS_WIDTH, value)
                    title = f"layer {TOKENS_WIDTH} → {TOKENS_WIDTH}"
                case "rank":
                    case = LayerCase(RANK_WIDTH, RANK_WIDTH, args.tokens)
                    title = f"layer {RANK_WIDTH} → {RANK_WIDTH}, {tokens}"
                    chosen = [f"{name}-r{value}" for name in RANKED if name in families]
                case "depth":
                    case = VitCase(DEPTH_MODEL, args.batch, value)
                    title = f"step of {DEPTH_MODEL}, batch {args.batch}"
                case _:
                    case = RotationCase(value, args.tokens)
                    title = f"GOFT's rotation / two copies, {tokens}"
                    chosen = [name for name in names if name == "goft"]
            if not chosen:
                say(f"scaling: no contestant of the sweep {sweep} was chosen")
                break
            yield Task("scaling", case, chosen, sweep, title, value)


def measure(task: Task, settings: Settings) -> dict[str, Any]:
    """Measure all contestants of a task; those that cannot be built or run come with the reason."""
    say(f"{task.section}: {task.case.label}")
    base = task.case.base(settings)
    workloads: dict[str, Workload] = {}
    skipped: dict[str, str] = {}
    for name in (FLOOR, *task.names):
        try:
            workload = task.case.workload(base, name, settings)
            workload.step()
            workload.reset()
            workloads[name] = workload
        except Exception as error:  # whatever a library raises is the reason
            if name == FLOOR:
                raise
            skipped[name] = reason(error)
            say(f"  {name} is skipped: {skipped[name]}")
    _free(settings)
    results = summary(interleave(workloads, settings, task.case.label))
    for name, workload in workloads.items():
        result = results[name]
        result["parameters"] = workload.trainable()
        result["notes"] = workload.notes
        result["input_bytes"] = workload.input_bytes
        result["saved_bytes"] = saved_bytes(workload)
    if settings.peak and task.sweep is None:
        if settings.device == "cpu":
            del base
            workloads.clear()  # each peak has a process of its own, and now the memory
            _free(settings)
        for name, result in results.items():
            try:
                gpu = settings.device == "cuda"
                result["peak_bytes"] = gpu_peak(workloads[name]) if gpu else process_peak(task.case, name, settings)
            except NotMeasurableError as error:
                result["peak_skipped"] = str(error)
    entries = {name: find(name) for name in (FLOOR, *task.names)}
    return {
        "section": task.section,
        "sweep": task.sweep,
        "title": task.title,
        "value": task.value,
        "label": task.case.label,
        "case": dataclasses.asdict(task.case),  # type: ignore[call-overload]
        "contestants": {name: dataclasses.asdict(entry) for name, entry in entries.items()},
        "results": results,
        "skipped": skipped,
    }


def _free(settings: Settings) -> None:
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()
