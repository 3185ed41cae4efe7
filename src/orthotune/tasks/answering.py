"""Responses of an instruction-tuned run to questions, written for a judge to compare (Vicuna-Eval)."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orthotune.errors import InputError
from orthotune.models.text import TextModel
from orthotune.progress import quietly, track
from orthotune.tasks.instruct import prompt_ids
from orthotune.texts.alpaca import Instruction
from orthotune.training.loop import build_accelerator
from orthotune.training.run import open_run


@dataclass(frozen=True)
class Generation:
    """How responses are made: at most so many tokens; the most probable ones, or drawn at a ``temperature`` above 0."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise InputError(f"--temperature is {self.temperature}; it must be at least 0")


def answer(
    run: str | Path,
    questions: str | Path,
    how: Generation | None = None,
    *,
    model_id: str | None = None,
    weights: str | None = None,
    batch_size: int = 8,
    device: str = "auto",
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Answers of the run's model to the questions of a file, as records that judges of Vicuna-Eval read.

    A line of the file has ``question_id`` and ``turns`` (one) or ``text``. A record has ``question_id``, ``answer_id``,
    ``model_id`` (the run's name), ``choices`` with the one answer, and ``tstamp`` in seconds. A question is put as an
    instruction without input. InputError for a run of another task and a malformed line.
    """
    how = how or Generation()
    asked = read_vicuna(questions)
    finished = open_run(run, weights=weights)
    base = finished.model.classifier
    if not isinstance(base, TextModel) or finished.config.task != "instruct":
        raise InputError(
            f"{str(run)!r} is a run of the task {finished.config.task!r}; answers need a causal model (instruct)"
        )
    name = model_id or Path(run).resolve().name
    with quietly(quiet):
        finished.model.module.to(build_accelerator(device).device).eval()
        prompts = prompt_ids(base.processor, [Instruction(text, "", "").prompt() for _, text in asked])
        texts = generate(finished.model.module, base, prompts, how, batch_size)
    return [
        {
            "question_id": number,
            "answer_id": hashlib.sha256(f"{name}\n{number}\n{text}".encode()).hexdigest()[:22],
            "model_id": name,
            "choices": [{"index": 0, "turns": [text]}],
            "tstamp": time.time(),
        }
        for (number, _), text in zip(asked, texts, strict=True)
    ]


@torch.no_grad()
def generate(module: Any, base: TextModel, prompts: list[list[int]], how: Generation, batch_size: int) -> list[str]:
    """What ``module`` writes after each of ``prompts``, up to the end of text; InputError for a long prompt."""
    from transformers import GenerationConfig

    tokenizer, longest = base.processor, base.longest
    for prompt in prompts:
        if longest is not None and len(prompt) >= longest:
            raise InputError(f"a question has {len(prompt)} tokens, but {base.name} takes at most {longest}")
    plain = module.get_base_model() if hasattr(module, "get_base_model") else module
    sampling: dict[str, Any] = {"do_sample": True, "temperature": how.temperature} if how.temperature else {}
    torch.manual_seed(how.seed)
    texts: list[str] = []
    starts = range(0, len(prompts), batch_size)
    for start in track(starts, "answering", len(starts)):
        inputs = tokenizer.pad(
            {"input_ids": prompts[start : start + batch_size]}, padding_side="left", return_tensors="pt"
        ).to(plain.device)
        width = inputs["input_ids"].shape[1]
        config = GenerationConfig(
            max_new_tokens=min(how.max_new_tokens, (longest or width + how.max_new_tokens) - width),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            **sampling,
        )
        found = plain.generate(**inputs, generation_config=config)
        texts += [text.strip() for text in tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)]
    return texts


def read_vicuna(path: str | Path) -> list[tuple[Any, str]]:
    """(question_id, question) of each line of a JSONL file; InputError with the line for what is malformed."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"--questions {str(path)!r} cannot be read: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{str(path)!r}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error})") from error
        turns = record.get("turns", [record.get("text")]) if isinstance(record, dict) else None
        if not turns or "question_id" not in record or not all(isinstance(t, str) and t.strip() for t in turns):
            raise InputError(f"{where}: no question_id, or no text in 'turns' or 'text'")
        if len(turns) > 1:
            raise InputError(f"{where}: {len(turns)} turns; the Alpaca format has no dialogue, so there may be one")
        found.append((record["question_id"], turns[0]))
    if not found:
        raise InputError(f"--questions {str(path)!r} holds no questions")
    return found
