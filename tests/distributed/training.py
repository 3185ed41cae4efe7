"""What is trained, the same in one process and in several: small models, a few steps, and what is recorded of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from orthotune import InputError, orthogonality_defect, regularization_loss
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.sharding import is_sharded
from tuners.cases import config

SAMPLES, STEPS = 8, 3
WIDTH = 64  # 64 x 64 is the smallest weight that evaluation keeps adapted


@dataclass(frozen=True)
class Case:
    """A model, a configuration of ``tuners.cases`` and how to train."""

    model: str
    method: str
    micro_batches: int = 1
    checkpointing: bool = False

    def __str__(self) -> str:
        accumulated = f"-{self.micro_batches}-micro-batches" if self.micro_batches > 1 else ""
        return f"{self.model}-{self.method}{accumulated}{'-checkpointing' if self.checkpointing else ''}"


CASES = {
    str(case): case
    for case in (
        Case("bert", "goft"),
        Case("bert", "goft-num_trees=3"),
        Case("bert", "qgoft", micro_batches=2),
        Case("bert", "rlrr", micro_batches=2),
        Case("bert", "aoft-learn_scale=False"),
        Case("llama", "qgoft-scale=output", checkpointing=True),
        Case("llama", "rlrr", checkpointing=True),
        Case("llama", "aoft", checkpointing=True),
        Case("convnet", "goft"),
        Case("convnet", "qgoft"),
        Case("convnet", "rlrr"),
        Case("convnet", "aoft"),
    )
}


class ConvNet(nn.Module):
    """A convolution and two linear layers that return logits, no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, (3, 2), stride=2)
        self.hidden = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.head = nn.Linear(2 * WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.conv(x).tanh().mean((2, 3))).tanh())


def base_model(name: str) -> nn.Module:
    """Make a small model, the same one every time."""
    torch.manual_seed(0)
    if name == "bert":
        options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3}
        sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        model: nn.Module = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes, **options))
    elif name == "llama":
        sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes))
    else:
        model = ConvNet()
    return model.double()


def adapted(case: Case) -> PeftModel:
    """Put the case's adapter, away from its no-op start, on its model."""
    targets = {"bert": ["query", "dense"], "llama": ["q_proj", "v_proj", "up_proj"], "convnet": ["conv", "hidden"]}
    names = targets[case.model]
    if case.method.startswith("rlrr") and case.model == "bert":
        names = [*names, "LayerNorm"]
    task = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM", "convnet": None}[case.model]
    head = {"convnet": ["head"]}.get(case.model)
    options: dict[str, Any] = {"reg_lambda": 0.5} if case.method.startswith("qgoft") else {}
    if case.model != "bert" and case.method.startswith("rlrr"):
        options["shift"] = False
    base = base_model(case.model)
    torch.manual_seed(1)
    model = get_peft_model(
        base,
        config(case.method, target_modules=names, task_type=task, modules_to_save=head, init_weights=False, **options),
    ).double()
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def batch(case: Case, step: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of one step's global batch."""
    source = torch.Generator().manual_seed(100 + step)
    if case.model == "convnet":
        x: Tensor = torch.randn(SAMPLES, 3, 7, 8, generator=source).double()
    else:
        x = torch.randint(50, (SAMPLES, 5), generator=source)
    return x, x if case.model == "llama" else torch.randint(3, (SAMPLES,), generator=source)


def loss_of(case: Case, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return the loss, with qGOFT's penalty in it, by itself or by the call for models that return logits."""
    if case.model == "convnet":
        return F.cross_entropy(model(x), labels) + regularization_loss(model)
    return model(input_ids=x, labels=labels).loss


@torch.no_grad()
def evaluate(case: Case, model: nn.Module) -> Tensor:
    """Return the logits of a fixed batch, from a second pass: the first may keep something for it."""
    model.eval()
    x, _ = batch(case, 99)
    y = [model(x) if case.model == "convnet" else model(input_ids=x).logits for _ in range(2)]
    assert torch.equal(*y)
    return y[1].clone()


def train(case: Case, accelerator: Accelerator, folder: Path) -> None:
    """Train and evaluate a case; write what :mod:`distributed.test_training` compares into ``folder``, from rank 0."""
    model = adapted(case)
    # the size of a step is that of the gradient, so a wrong average shows
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    model, optimiser = accelerator.prepare(model, optimiser)
    accelerator.gradient_accumulation_steps = case.micro_batches
    record = {"evaluated_before": evaluate(case, model)}

    def step(number: int) -> Tensor:
        x, labels = batch(case, number)
        losses = []
        for micro in range(case.micro_batches):
            own = slice(
                micro * accelerator.num_processes + accelerator.process_index,
                None,
                case.micro_batches * accelerator.num_processes,
            )
            with accelerator.accumulate(model):
                loss = loss_of(case, model, x[own], labels[own])
                accelerator.backward(loss)
                optimiser.step()
                optimiser.zero_grad()
            losses.append(accelerator.reduce(loss.detach(), "mean"))
        return torch.stack(losses).mean()

    model.train()
    losses = [step(number) for number in range(STEPS)]
    record["evaluated_after"] = evaluate(case, model)
    losses.append(step(STEPS))  # in evaluation mode, where an adapted weight has been kept
    record["losses"] = torch.stack(losses)
    record["evaluated_last"] = evaluate(case, model)
    with torch.no_grad():
        record["penalty"] = regularization_loss(model).detach()

    state = accelerator.get_state_dict(model)
    plain = accelerator.unwrap_model(model)
    if accelerator.is_main_process:
        plain.save_pretrained(folder, state_dict=state)
    layers = [layer for layer in plain.modules() if isinstance(layer, AdapterLayer)]
    if is_sharded(layers[0].get_base_layer()):
        assert all(layer._merged_weight.empty for layer in layers)
        assert all(value >= 0 for value in orthogonality_defect(plain).values())
        for change in (plain.merge_adapter, plain.merge_and_unload):
            with pytest.raises(InputError, match="sharded over processes"):
                change()
    else:
        plain.merge_adapter()
    record["evaluated_merged"] = evaluate(case, model)
    if accelerator.is_main_process:
        save_file(record, folder / "record.safetensors")
