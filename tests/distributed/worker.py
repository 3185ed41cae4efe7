"""Train every case under one strategy: ``python -m distributed.worker STRATEGY FOLDER``, from tests/."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from distributed.training import CASES, Case, train


def alone() -> Accelerator:
    """Return what leaves the model as it is."""
    return Accelerator(cpu=True)


def fsdp2() -> Accelerator:
    """Return what shards the model; accelerate by itself only does so on accelerators, but it can on a CPU."""
    accelerator = Accelerator(cpu=True)
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


def fsdp_plugin(case: Case) -> FullyShardedDataParallelPlugin:
    """Return a plugin for the case's model: it is set up for one model class."""
    block = {"bert": "BertLayer", "llama": "LlamaDecoderLayer"}.get(case.model)
    if block is None:
        return FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    # by default BERT's embeddings would be a block too, in which accelerate shards the word embeddings twice
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=[block]
    )


STRATEGIES: dict[str, tuple[int, Callable[[], Accelerator]]] = {
    "alone": (1, alone),
    "ddp": (2, alone),
    "fsdp2": (2, fsdp2),
}


def work(rank: int, port: int, strategy: str, folder: Path) -> None:
    """Be one of the processes."""
    processes, make = STRATEGIES[strategy]
    if processes > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in places.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.use_deterministic_algorithms(True)
    accelerator = make()
    for name, case in CASES.items():
        if strategy == "fsdp2":
            accelerator.state.fsdp_plugin = fsdp_plugin(case)
        (folder / name).mkdir(parents=True, exist_ok=True)
        train(case, accelerator, folder / name)
        accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    strategy, folder = sys.argv[1:]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    arguments = (port, strategy, Path(folder))
    # forked, so that what is imported is imported once
    torch.multiprocessing.start_processes(work, arguments, nprocs=STRATEGIES[strategy][0], start_method="fork")
