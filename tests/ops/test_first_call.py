"""The first call of a width may happen in a special mode; what it leaves in caches must serve every later call."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from orthotune.ops import givens, staged

MODES = {
    "inference": torch.inference_mode,
    "meta": lambda: torch.device("meta"),
    "fake": FakeTensorMode,  # what torch.compile traces with
}


@pytest.fixture(autouse=True)
def _cold_caches() -> None:
    for cached in (staged.stages, givens._step):
        cached.cache_clear()


@pytest.mark.parametrize("trees", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_training_works_after_a_first_call_in_a_special_mode(mode: str, trees: int) -> None:
    context: AbstractContextManager[object] = MODES[mode]()
    with context:
        givens.apply(torch.randn(3, 10), torch.randn(9 * trees, 2, 2), num_trees=trees)
    x, blocks = torch.randn(3, 10, requires_grad=True), torch.randn(9 * trees, 2, 2, requires_grad=True)
    givens.apply(x, blocks, num_trees=trees).sum().backward()
    assert x.grad is not None
    assert blocks.grad is not None
    assert blocks.grad.isfinite().all()
