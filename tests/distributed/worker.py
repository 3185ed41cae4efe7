"""Train every case under one strategy: ``python -m distributed.worker STRATEGY FOLDER [CASE ...]``, from tests/."""

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
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin

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


def deepspeed(stage: int) -> Accelerator:
    """Return what shards gradients (ZeRO-2) or also the model (ZeRO-3); gloo alone, without compiling anything."""
    import deepspeed
    import deepspeed.ops

    PartialState(cpu=True)  # by itself accelerate finds no processes for DeepSpeed on a CPU
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.comm.init_distributed("gloo", auto_mpi_discovery=False)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    plugin = DeepSpeedPlugin(zero_stage=stage, zero3_init_flag=False, zero3_save_16bit_model=True)
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    plugin.deepspeed_config["zero_allow_untested_optimizer"] = True
    return Accelerator(deepspeed_plugin=plugin)


STRATEGIES: dict[str, tuple[int, torch.dtype, Callable[[], Accelerator]]] = {
    "alone": (1, torch.float64, alone),
    "ddp": (2, torch.float64, alone),
    "fsdp2": (2, torch.float64, fsdp2),
    "zero2": (2, torch.float32, lambda: deepspeed(2)),
    "zero3": (2, torch.float32, lambda: deepspeed(3)),
}


def work(rank: int, port: int, strategy: str, folder: Path, names: list[str]) -> None:
    """Be one of the processes."""
    processes, dtype, make = STRATEGIES[strategy]
    if processes > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in places.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.use_deterministic_algorithms(True)
    accelerator = make()
    for name in names:
        if strategy == "fsdp2":
            accelerator.state.fsdp_plugin = fsdp_plugin(CASES[name])
        (folder / name).mkdir(parents=True, exist_ok=True)
        train(CASES[name], accelerator, dtype, folder / name)
        accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    strategy, folder, *names = sys.argv[1:]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    arguments = (port, strategy, Path(folder), names or list(CASES))
    # forked, so that what is imported is imported once
    torch.multiprocessing.start_processes(work, arguments, nprocs=STRATEGIES[strategy][0], start_method="fork")
