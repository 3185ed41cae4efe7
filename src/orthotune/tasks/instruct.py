"""Responses to instructions by a causal language model: the loss of the response's tokens alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from transformers import DataCollatorForSeq2Seq

from orthotune.errors import InputError
from orthotune.models.adapt import AdaptedModel
from orthotune.models.build import Classifier
from orthotune.models.text import TextPreprocessing
from orthotune.progress import say, track
from orthotune.tasks.base import Loss, check_outputs
from orthotune.tasks.encoded import Encoded
from orthotune.tasks.language import LanguageScores, LanguageTask
from orthotune.texts.alpaca import Instruction

IGNORED = -100


class InstructTask(LanguageTask):
    """Instruction tuning in the Alpaca format."""

    head = "tokens"
    default_length: ClassVar[int] = 512

    def encode(self, base: Classifier) -> tuple[dict[str, Any], dict[str, Any]]:
        stores, description = super().encode(base)
        for name, store in stores.items():
            description[name]["examples"] = len(store.records)
            description[name]["left_out"] = store.left_out
            description[name]["response_tokens"] = sum(_terms(f["labels"]) for f in store.features)
        return stores, description

    def encoded(self, records: list[Instruction], how: TextPreprocessing) -> Encoded:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise InputError(f"the tokenizer of {self.config.model!r} has no end of text, by which a response ends")
        prompts = prompt_ids(self.tokenizer, [record.prompt() for record in records])
        responses = self.tokenizer([record.output for record in records], add_special_tokens=False)["input_ids"]
        features, kept = [], []
        for record, prompt, response in zip(records, prompts, responses, strict=True):
            if len(prompt) >= how.max_length:
                continue
            ids = [*prompt, *response, end][: how.max_length]
            labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
            features.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
            kept.append(record)
        if not features:
            raise InputError(f"no prompt is shorter than --max-length {how.max_length} tokens: raise it")
        store = Encoded(features, kept)
        store.left_out = len(records) - len(kept)
        if store.left_out:
            say(f"{store.left_out} of {len(records)} instructions left out: their prompts fill {how.max_length} tokens")
        return store

    def collate(self, features: list[dict[str, Any]]) -> Any:
        return DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=IGNORED)(features)

    def count(self, batch: Any) -> int:
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def loss(self, model: AdaptedModel, batch: Any, accelerator: Accelerator) -> Loss:
        logits, labels = self._responses(model, batch, accelerator)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return Loss(loss, (logits.argmax(-1) == labels).sum())

    def _responses(self, model: AdaptedModel, batch: Any, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
        """(logits (T, vocabulary) before, labels (T,) of the T tokens of responses)."""
        labels = batch["labels"].to(accelerator.device)[:, 1:]
        wanted = labels != IGNORED
        return self.outputs(model, batch, accelerator)[:, :-1][wanted], labels[wanted]

    @torch.no_grad()
    def evaluate(
        self, model: AdaptedModel, store: Encoded, accelerator: Accelerator, batch_size: int, workers: int = 0
    ) -> LanguageScores:
        model.module.to(accelerator.device).eval()
        data, batches = self.loader(store, batch_size, workers=workers)
        loss, hits, count = 0.0, 0, 0
        for batch in track(data, "evaluating", len(batches)):
            logits, labels = self._responses(model, batch, accelerator)
            check_outputs(logits)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            hits += int((logits.argmax(-1) == labels).sum())
            count += len(labels)
        return LanguageScores(len(store.records), loss / count, {"accuracy": hits / count})

    def rank(self, entry: Any) -> tuple[float, float]:
        """Higher is a better epoch: lower loss; without validation every later epoch."""
        return -entry.get("val_loss", 0.0), 0.0


def prompt_ids(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """The tokens of prompts, with what the tokenizer puts before a text and without what it puts after it."""
    found: list[list[int]] = tokenizer(prompts)["input_ids"]
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in found]


def _terms(labels: list[int]) -> int:
    return sum(label != IGNORED for label in labels)
