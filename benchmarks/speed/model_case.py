"""A whole training step of a model: forward, cross-entropy, backward and AdamW on what is trained.

Weights are random, which the time does not depend on. The head is frozen, and the gradient is carried to the output of
the embeddings, for all contestants and the floor alike. The frozen weights are one set in memory for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from contestants import adapt
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from workload import Settings, Workload, size

from orthotune import regularization_loss

LEARNING_RATE = 1e-4
HEAD_WIDTH = 128  # of Llama's attention
VOCABULARY = 1024  # small: the blocks are what is measured, not the embeddings


@dataclass(frozen=True)
class VitCase:
    """A vision transformer of timm, adapted in qkv, proj, fc1 and fc2 of its first ``blocks`` blocks (None: of all)."""

    name: str
    batch: int
    blocks: int | None = None

    @property
    def label(self) -> str:
        """Return the model and the batch."""
        some = "" if self.blocks is None else f", adapted blocks: {self.blocks}"
        return f"{self.name}, batch {self.batch}{some}"

    def base(self, settings: Settings) -> nn.Module:
        """Make the model."""
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(self.name, pretrained=False).to(**settings.place())
        return model.train()

    def workload(self, base: Any, name: str, settings: Settings) -> Workload:
        """Put adapters on the blocks."""
        torch.manual_seed(1)
        x = torch.randn(self.batch, *base.pretrained_cfg["input_size"], **settings.place())
        labels = torch.randint(base.num_classes, (self.batch,), device=settings.device)
        targets = [
            f"blocks.{index}.{layer}"
            for index in range(len(base.blocks))[: self.blocks]
            for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        ]
        return _workload(base, "patch_embed", targets, name, settings, x, labels, lambda model: model(x))


@dataclass(frozen=True)
class LlamaCase:
    """Llama's decoder blocks with a small vocabulary, adapted in every linear layer but the head."""

    hidden: int
    intermediate: int
    tokens: int
    layers: int = 1

    @property
    def label(self) -> str:
        """Return the widths and the tokens."""
        blocks = "1 Llama block" if self.layers == 1 else f"{self.layers} Llama blocks"
        return f"{blocks} {self.hidden}/{self.intermediate}, {self.tokens} tokens"

    def base(self, settings: Settings) -> nn.Module:
        """Make the model."""
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.hidden // HEAD_WIDTH),
            vocab_size=VOCABULARY,
            max_position_embeddings=self.tokens,
            use_cache=False,
        )
        return LlamaForCausalLM(config).to(**settings.place()).train()

    def workload(self, base: nn.Module, name: str, settings: Settings) -> Workload:
        """Put adapters on the blocks."""
        torch.manual_seed(1)
        tokens = torch.randint(VOCABULARY, (1, self.tokens), device=settings.device)
        labels = torch.randint(VOCABULARY, (self.tokens,), device=settings.device)
        targets = [
            f"model.layers.{index}.{layer}"
            for index in range(self.layers)
            for layer in (
                *(f"self_attn.{part}_proj" for part in "qkvo"),
                *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
            )
        ]
        embeddings = "model.embed_tokens"
        return _workload(
            base, embeddings, targets, name, settings, tokens, labels, lambda model: model(input_ids=tokens).logits[0]
        )


def _workload(
    base: nn.Module,
    embeddings: str,
    targets: list[str],
    name: str,
    settings: Settings,
    x: Tensor,
    labels: Tensor,
    logits: Callable[[nn.Module], Tensor],
) -> Workload:
    model = copy.deepcopy(base, {id(p): p for p in base.parameters()})  # the copy has the same parameters
    model.get_submodule(embeddings).register_forward_hook(lambda module, args, output: output.requires_grad_())
    model, notes = adapt(model, targets, name, settings.authors)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE) if trained else None
    penalised = name == "qgoft"

    def step() -> None:
        loss = nn.functional.cross_entropy(logits(model).float(), labels)
        if penalised:
            loss = loss + regularization_loss(model)
        loss.backward()
        if optimiser is not None:
            optimiser.step()

    return Workload(step, model, size(x), (), notes)
