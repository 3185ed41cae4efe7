"""AdaLoRA's share-out of ranks between layers, which PEFT leaves to the training loop."""

from __future__ import annotations

from typing import Any

from peft import AdaLoraModel
from torch import nn


class RankAllocation:
    """Calls PEFT's allocator after every update; does nothing for other methods."""

    def __init__(self, module: nn.Module, total_steps: int) -> None:
        tuner = getattr(module, "base_model", None)
        self.tuner: Any = tuner if isinstance(tuner, AdaLoraModel) else None
        self.total_steps = total_steps
        if self.tuner is not None:
            self.config.total_step = total_steps
            self.tuner.rankallocator.set_total_step(total_steps)

    @property
    def config(self) -> Any:
        """The adapter's configuration."""
        return self.tuner.peft_config[self.tuner.trainable_adapter_name]

    def after(self, step: int) -> None:
        """Score the ranks by the gradients of update ``step`` (from 1) and mask the least important ones."""
        if self.tuner is None:
            return
        self.tuner.update_and_allocate(step)
        if step == self.total_steps:
            # the masked ranks are saved as zeros: a saved pattern would cut the tensors of another epoch's weights
            self.config.rank_pattern = None
