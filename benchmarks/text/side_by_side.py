"""The time of a training step of each method, relative to that of the head over the frozen encoder.

The gradient is carried through the frozen encoder to the output of its embeddings for all alike, as benchmarks/speed
has it for its floor. All run in one process, each once a repeat, in a shuffled order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from contestants import FLOOR
from timing import interleave, summary
from torch import Tensor
from tuning import Recipe, build, loss, optimiser
from workload import Settings, Workload

from orthotune import regularization_loss

LEARNING_RATE = 1e-5  # the time does not depend on it


def time_steps(
    folder: Path, methods: list[str], batch: dict[str, Tensor], accelerator: Accelerator, repeats: int
) -> dict[str, Any]:
    """Return for the floor and each method the seconds of ``repeats`` steps and their ratios to the floor."""
    workloads = {
        name: _workload(folder, "linear" if name == FLOOR else name, batch, accelerator) for name in [FLOOR, *methods]
    }
    settings = Settings(device=accelerator.device.type, repeats=repeats)
    return {"steps": summary(interleave(workloads, settings, "steps"))}


def _workload(folder: Path, method: str, batch: dict[str, Tensor], accelerator: Accelerator) -> Workload:
    model = build(folder, method, seed=0)
    model.module.to(accelerator.device)
    base: Any = model.classifier.module
    base.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    recipe = Recipe(method, LEARNING_RATE, LEARNING_RATE, 0, 1, len(batch["labels"]), batch["input_ids"].shape[1])
    adamw = optimiser(model, recipe)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    model.train()

    def step() -> None:
        (loss(model, batch, accelerator) + regularization_loss(model.module)).backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        adamw.step()

    return Workload(step, model.module, 0)
