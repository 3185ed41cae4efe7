"""Answers as spans of a context (SQuAD v1.1): the loss of their first and last token, exact match and F1."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.text import squad
from transformers import DataCollatorWithPadding

from orthotune.errors import InputError
from orthotune.models.adapt import AdaptedModel
from orthotune.models.build import Classifier
from orthotune.models.text import TextPreprocessing
from orthotune.progress import track
from orthotune.tasks.base import Loss, check_outputs
from orthotune.tasks.encoded import Encoded, order_of
from orthotune.tasks.language import LanguageScores, LanguageTask
from orthotune.texts.squad import Question

#: the longest answer that is looked for, in tokens
LONGEST_ANSWER = 30


class Windows(Encoded):
    """Contexts in overlapping windows: of each the index of its question and, per token, its characters in the context.

    The characters of a token that is not the context's are None.
    """

    def __init__(
        self, features: list[dict[str, Any]], records: list[Question], owners: list[int], characters: list[list[Any]]
    ) -> None:
        super().__init__(features, records)
        self.owners, self.characters = owners, characters


class QuestionTask(LanguageTask):
    """Extractive question answering."""

    head = "span"
    default_length: ClassVar[int] = 384
    metric = test_metric = "f1"

    def preprocessing(self, base: Classifier) -> dict[str, Any]:
        how = {**super().preprocessing(base), "stride": self.config.stride}
        self.restore(base, how)
        return how

    def encoded(self, records: list[Question], how: TextPreprocessing) -> Windows:
        stride = how.stride or 0
        self._check_lengths(records, how.max_length, stride)
        tokens = self.tokenizer(
            [record.question for record in records],
            [record.context for record in records],
            truncation="only_second",
            max_length=how.max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners = tokens.pop("overflow_to_sample_mapping")
        offsets = tokens.pop("offset_mapping")
        features, characters = [], []
        for i, owner in enumerate(owners):
            sides = tokens.sequence_ids(i)
            inside = [span if side == 1 else None for span, side in zip(offsets[i], sides, strict=True)]
            start, end = _positions(records[owner], inside)
            features.append({**{k: v[i] for k, v in tokens.items()}, "start_positions": start, "end_positions": end})
            characters.append(inside)
        return Windows(features, records, owners, characters)

    def _check_lengths(self, records: list[Question], max_length: int, stride: int) -> None:
        if not self.tokenizer.is_fast:
            raise InputError(f"{self.config.model}: its tokenizer does not say which characters a token stands for")
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        tokens = self.tokenizer([record.question for record in records], add_special_tokens=False)["input_ids"]
        for record, ids in zip(records, tokens, strict=True):
            if len(ids) + special + stride >= max_length:
                raise InputError(
                    f"question {record.id!r} has {len(ids)} tokens, so that windows of --max-length {max_length} that "
                    f"share --stride {stride} leave no room for the context: lower --stride or raise --max-length"
                )

    def collate(self, features: list[dict[str, Any]]) -> Any:
        return DataCollatorWithPadding(self.tokenizer)(features)

    def count(self, batch: Any) -> int:
        return len(batch["input_ids"])

    def loss(self, model: AdaptedModel, batch: Any, accelerator: Accelerator) -> Loss:
        logits = self.outputs(model, batch, accelerator)
        return Loss(_span_loss(logits, batch))

    def evaluate(
        self, model: AdaptedModel, store: Windows, accelerator: Accelerator, batch_size: int, workers: int = 0
    ) -> LanguageScores:
        answers, loss = self.answers(model, store, accelerator, batch_size, workers)
        records = store.records
        found = squad(
            [{"id": r.id, "prediction_text": answer} for r, answer in zip(records, answers, strict=True)],
            [{"id": r.id, "answers": {"text": list(r.answers), "answer_start": list(r.starts)}} for r in records],
        )
        return LanguageScores(len(records), loss, {name: value.item() / 100 for name, value in found.items()})

    @torch.no_grad()
    def answers(
        self, model: AdaptedModel, store: Windows, accelerator: Accelerator, batch_size: int, workers: int = 0
    ) -> tuple[list[str], float]:
        """(the best span of each question, over all windows of its context; the mean loss over windows)."""
        model.module.to(accelerator.device).eval()
        data, batches = self.loader(store, batch_size, workers=workers)
        order = iter(order_of(batches))
        best = [(-torch.inf, "")] * len(store.records)
        losses = 0.0
        for batch in track(data, "evaluating", len(batches)):
            logits = self.outputs(model, batch, accelerator).cpu()
            check_outputs(logits)
            losses += _span_loss(logits, batch).item() * len(logits)
            for window in logits:
                index = next(order)
                characters, owner = store.characters[index], store.owners[index]
                score, first, last = best_span(window, [span is not None for span in characters])
                if score > best[owner][0]:
                    text = store.records[owner].context[characters[first][0] : characters[last][1]]
                    best[owner] = (score, text)
        return [text for _, text in best], losses / len(store)


def best_span(logits: Tensor, inside: list[bool]) -> tuple[float, int, int]:
    """(score, first, last token) of the best span of at most LONGEST_ANSWER tokens inside the context.

    ``logits`` (L', 2) of a window, L' >= L = ``len(inside)`` with the padding; the score is the sum of the two.
    """
    length = len(inside)
    outside = ~torch.tensor(inside)
    start, end = logits[:length].masked_fill(outside[:, None], -torch.inf).unbind(-1)
    scores = start[:, None] + end[None, :]
    allowed = torch.ones(length, length, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    best = scores.masked_fill(~allowed, -torch.inf).argmax().item()
    first, last = divmod(int(best), length)
    return scores[first, last].item(), first, last


def _positions(record: Question, characters: list[Any]) -> tuple[int, int]:
    """The first and the last token of the first answer; (0, 0) where the window does not hold all of it."""
    if not record.answers:
        return 0, 0
    begin, end = record.starts[0], record.starts[0] + len(record.answers[0])
    touched = [i for i, span in enumerate(characters) if span is not None and span[0] < end and span[1] > begin]
    if not touched or characters[touched[0]][0] > begin or characters[touched[-1]][1] < end:
        return 0, 0
    return touched[0], touched[-1]


def _span_loss(logits: Tensor, batch: Any) -> Tensor:
    """Mean of the cross-entropies of the first and of the last token; padding has no share."""
    outside = ~batch["attention_mask"].bool().to(logits.device)
    logits = logits.masked_fill(outside[:, :, None], torch.finfo(logits.dtype).min / 2)
    first, last = (batch[name].to(logits.device) for name in ("start_positions", "end_positions"))
    return (F.cross_entropy(logits[:, :, 0], first) + F.cross_entropy(logits[:, :, 1], last)) / 2
