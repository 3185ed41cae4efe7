"""The time of a training step of each method, relative to that of the head over the frozen model.

The gradient is carried through the frozen model to the output of its patch embedding for all alike, as benchmarks/speed
has it for its floor. All run in one process, each once a repeat, in a shuffled order.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from contestants import FLOOR
from timing import interleave, summary
from workload import Settings, Workload

from orthotune import regularization_loss
from orthotune.models import adapt, build_classifier

CLASSES = 10
LEARNING_RATE = 1e-6  # the time does not depend on it


def time_steps(args: argparse.Namespace, methods: list[str]) -> dict[str, Any]:
    """Return for the floor and each method the seconds of the steps and their ratios to the floor."""
    workloads = {name: _workload(args, "linear" if name == FLOOR else name) for name in (FLOOR, *methods)}
    return summary(interleave(workloads, Settings(device="cpu", repeats=args.repeats), "steps"))


def _workload(args: argparse.Namespace, method: str) -> Workload:
    classifier = build_classifier(args.model, CLASSES, image_size=args.image_size, weights=args.weights)
    base: Any = classifier.module
    base.patch_embed.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    model = adapt(classifier, method, {})
    trained = [p for p in model.module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    size = classifier.preprocessing.size
    images = torch.randn(args.batch_size, 3, size, size)
    labels = torch.randint(CLASSES, (args.batch_size,))
    model.train()

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model.logits(images), labels)
        (loss + regularization_loss(model.module)).backward()
        optimiser.step()

    return Workload(step, model.module, 0)
