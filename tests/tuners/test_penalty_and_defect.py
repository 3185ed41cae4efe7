"""qGOFT's penalty reaches the loss by itself or by one call; the defect is what it says."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import orthotune
import reference
from orthotune.tuners.loss import add_to_loss
from tuners.cases import config, model_and_input


def bert() -> nn.Module:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=16, **size)).eval()


BATCH = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.tensor([0, 1])}


def expected_penalty(model: nn.Module) -> torch.Tensor:
    total = torch.zeros(())
    for name, p in model.named_parameters():
        if "goft_block" in name:
            total = total + sum((b[0, 0] * b[0, 1] + b[1, 0] * b[1, 1]) ** 2 for b in p)
    return total


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
def test_penalty_is_in_the_loss_the_model_returns(task_type: str | None) -> None:
    options = orthotune.GOFTConfig(quasi=True, reg_lambda=0.5, init_weights=False, task_type=task_type)
    model = peft.get_peft_model(bert(), options).eval()
    want = 0.5 * expected_penalty(model)
    assert want > 0.01
    assert torch.allclose(orthotune.regularization_loss(model), want, rtol=1e-5)
    plain = torch.nn.functional.cross_entropy(model(input_ids=BATCH["input_ids"]).logits, BATCH["labels"])
    assert torch.allclose(model(**BATCH).loss, plain + want, rtol=1e-5)
    assert torch.allclose(model(**BATCH, return_dict=False)[0], plain + want, rtol=1e-5)
    model(**BATCH).loss.backward()
    block = model.base_model.model.bert.encoder.layer[0].attention.self.query.goft_block["default"]
    assert block.grad.abs().sum() > 0


def test_penalty_counts_only_what_is_active() -> None:
    model, _ = model_and_input("linear")
    assert orthotune.regularization_loss(model) == 0
    adapted = peft.get_peft_model(model, config("qgoft", target_modules=["first"], init_weights=False))
    first = orthotune.regularization_loss(adapted)
    assert first > 0
    adapted.add_adapter("rotations", config("goft", target_modules=["first"], init_weights=False))
    adapted.set_adapter("rotations")
    assert orthotune.regularization_loss(adapted) == 0
    adapted.set_adapter("default")
    assert orthotune.regularization_loss(adapted) == first
    with adapted.disable_adapter():
        assert orthotune.regularization_loss(adapted) == 0
    adapted.merge_adapter()
    assert orthotune.regularization_loss(adapted) == 0


@pytest.mark.parametrize("kind", ["dict", "tuple", "object", "logits"])
def test_outputs_of_any_kind(kind: str) -> None:
    loss, logits = torch.tensor(1.0), torch.zeros(2)
    plain = type("Output", (), {})()
    plain.loss = loss
    output = {"dict": {"loss": loss}, "tuple": (loss, logits), "object": plain, "logits": logits}[kind]
    changed = add_to_loss(output, torch.tensor(0.5), has_labels=True)
    if kind == "logits":
        assert changed is logits
    else:
        got = {"dict": lambda o: o["loss"], "tuple": lambda o: o[0], "object": lambda o: o.loss}[kind](changed)
        assert got == 1.5
    assert add_to_loss((logits, logits), torch.tensor(0.5), has_labels=False)[0] is logits


@pytest.mark.parametrize("name", ["goft", "qgoft", "goft-num_trees=3", "aoft"])
def test_defect_against_the_dense_matrices(name: str) -> None:
    model, _ = model_and_input("linear")
    adapted = peft.get_peft_model(model, config(name, target_modules=["first"], init_weights=False))
    layer = adapted.base_model.model.first
    ((key, got),) = orthotune.orthogonality_defect(adapted).items()
    assert key == "base_model.model.first"
    if name == "aoft":
        with torch.no_grad():
            layer.aoft_down["default"].mul_(1.2)
        q = layer.aoft_down["default"].detach().double()
        projection = reference.approx_orthogonal_matrix(q)[:, :3]
        want = (projection.T @ projection - torch.eye(3)).abs().max().item()
        got = orthotune.orthogonality_defect(adapted)[key]
        assert got == pytest.approx(want, rel=1e-4)
        assert want > 0.1
    elif name == "qgoft":
        rotation = reference.givens_matrix(layer.goft_block["default"].detach().double(), 10)
        want = (rotation.T @ rotation - torch.eye(10)).abs().max().item()
        assert got == pytest.approx(want, rel=1e-4)
        assert want > 0.1
    else:
        assert got <= 2e-6


def test_rescaling_has_no_defect_to_report() -> None:
    model, _ = model_and_input("linear")
    assert orthotune.orthogonality_defect(peft.get_peft_model(model, config("rlrr", target_modules=["first"]))) == {}
