"""A small vision transformer under any method, with everything that the method trains moved from its start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from orthotune.models import AdaptedModel, adapt, build_classifier
from training.tiny import MODEL_ARGS


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def adapted() -> Callable[..., AdaptedModel]:
    """``adapted(method, noise=0.05, **adapter_fields)``."""

    def make(method: str, noise: float = 0.05, **fields: object) -> AdaptedModel:
        classifier = build_classifier(
            "vit_tiny_patch16_224", 3, image_size=16, random_weights=True, model_args=MODEL_ARGS
        )
        model = adapt(classifier, method, fields)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.module.parameters():
                if parameter.requires_grad:
                    parameter.add_(noise * torch.randn_like(parameter))
        model.module.eval()
        return model

    return make
