"""Memory of a step: what autograd saves for the backward, and the growth of the peak.

* Saved: every storage that passes through autograd's saved-tensor hooks, counted once, but for the storages of the
  module's parameters and buffers. What an operator keeps in other ways is not seen; the peak sees it.
* Peak: on a GPU from PyTorch's allocator. On a CPU it is the growth of the process's peak resident memory, in a process
  of its own where every large tensor goes back to the system as soon as it is freed (Linux only).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import torch
from contestants import reason
from torch import Tensor
from workload import Case, Settings, Workload

# from this size on, glibc gives a tensor pages of its own, which are gone when it is freed
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


class NotMeasurableError(Exception):
    """Says why a peak cannot be measured here."""


def saved_bytes(workload: Workload) -> int:
    """Return the bytes that one step keeps for its backward."""
    own = {t.untyped_storage().data_ptr() for t in (*workload.module.parameters(), *workload.module.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor  # kept alive, so that no other storage takes its address

    workload.reset()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        workload.step()
    workload.reset()
    return sum(sizes.values())


def gpu_peak(workload: Workload) -> int:
    """Return by how much one step raises the peak of the memory in use on the GPU."""
    workload.reset()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    workload.step()
    torch.cuda.synchronize()
    workload.reset()
    return int(torch.cuda.max_memory_allocated() - before)


def process_peak(case: Case, name: str, settings: Settings) -> int:
    """Return the same on a CPU, measured in a new process; NotMeasurableError says why it could not be."""
    if sys.platform != "linux":
        raise NotMeasurableError("the peak of a CPU process is measured on Linux only")
    context = multiprocessing.get_context("forkserver")  # imports once, and forks a fresh process for each peak
    context.set_forkserver_preload(["layer_case", "model_case"])
    with _environment({**RETURNING, "PYTHONPATH": os.pathsep.join(sys.path)}), ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_growth, case, name, settings).result()
        except BrokenProcessPool:
            raise NotMeasurableError("the process was killed, likely for want of memory") from None
        except Exception as error:  # whatever happens there is the reason
            raise NotMeasurableError(reason(error)) from error


def _growth(case: Case, name: str, settings: Settings) -> int:
    torch.set_num_threads(settings.threads)
    workload = case.workload(case.base(settings), name, settings)
    for _ in range(2):  # the libraries' own buffers and the optimiser's state come with the first step
        workload.reset()
        workload.step()
    workload.reset()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present
    before = _resident("VmRSS")
    workload.step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
