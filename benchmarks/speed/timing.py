"""Interleaved timing: every repeat runs each contestant once, in a shuffled order, so that drift hits all alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from contestants import FLOOR
from workload import Settings, Workload

from orthotune.progress import track

CUDA_STEPS = 10  # steps in one measurement: the queue stays filled, as in training


def seconds_per_step(workload: Workload, device: str) -> float:
    """Time one step, on a GPU the mean of CUDA_STEPS in a row; gradients are cleared before it."""
    workload.reset()
    if device == "cpu":
        start = time.perf_counter()
        workload.step()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(CUDA_STEPS):
        workload.reset()
        workload.step()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / CUDA_STEPS


def interleave(workloads: Mapping[str, Workload], settings: Settings, title: str) -> dict[str, list[float]]:
    """Return the seconds per step of each workload, one number a repeat, after ``warmup`` steps of each."""
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for repeat in track(range(-settings.warmup, settings.repeats), title):
            order = list(workloads)
            shuffle(order)
            for name in order:
                value = seconds_per_step(workloads[name], settings.device)
                workloads[name].reset()
                if repeat >= 0:
                    seconds[name].append(value)
            gc.collect()
    finally:
        gc.enable()
    return seconds


def summary(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return per contestant the times, and its ratios to the floor.

    ``ratio`` is the median of the ratios within each repeat, ``ratio_quartiles`` are their quartiles;
    ``ratio_of_medians`` is the median time over the floor's.
    """
    floor = seconds[FLOOR]
    found = {}
    for name, values in seconds.items():
        ratios = [value / own for value, own in zip(values, floor, strict=True)]
        found[name] = {
            "seconds": values,
            "seconds_median": statistics.median(values),
            "seconds_quartiles": quartiles(values),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": quartiles(ratios),
            "ratio_of_medians": statistics.median(values) / statistics.median(floor),
        }
    return found


def quartiles(values: list[float]) -> list[float]:
    """Return the first and the third quartile; of one value, the value."""
    if len(values) == 1:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]
