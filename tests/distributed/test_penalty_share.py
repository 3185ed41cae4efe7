"""qGOFT's penalty counts once, however many parts transformers' Trainer adds a batch's loss up from."""

from __future__ import annotations

import pytest
import torch

from distributed.training import Case, adapted, batch
from orthotune import regularization_loss


@pytest.mark.parametrize("ignored", [0, 7])
def test_parts_add_up_to_the_whole_batch(ignored: int) -> None:
    case = Case("llama", "qgoft")
    model = adapted(case)
    x, _ = batch(case, 0)
    labels = x.clone()
    labels.view(-1)[torch.arange(ignored)] = -100
    items = (labels != -100).sum()
    total = torch.zeros(())
    bare = torch.zeros(())
    for rows in (slice(0, 1), slice(1, 5), slice(5, 8)):
        part = {"input_ids": x[rows], "labels": labels[rows], "num_items_in_batch": items}
        total = total + model(**part).loss
        for config in model.peft_config.values():
            config.reg_lambda = 0.0
        bare = bare + model(**part).loss
        for config in model.peft_config.values():
            config.reg_lambda = 0.5
    torch.testing.assert_close(total - bare, regularization_loss(model), rtol=1e-5, atol=0, check_dtype=False)
