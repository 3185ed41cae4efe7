"""Models of texts with tokenizers built on the spot, and data small enough to train on in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from orthotune.training import FitConfig

GOOD = ["a warm and lovely film", "truly funny", "the best of the year", "an honest , moving story"]
BAD = ["a cold and dull film", "never funny", "the worst of the year", "a dishonest , boring story"]
WORDS = " ".join((*GOOD, *BAD)).split()


def bert(folder: Path, longest: int = 64) -> Path:
    """A BERT encoder without a head, of random weights, whose tokens are words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(WORDS), *"0123456789?.:"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=longest,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(str(folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=longest,
    )
    BertModel(config).save_pretrained(str(folder))
    return folder


def llama(folder: Path, texts: list[str], *, longest: int = 256) -> Path:
    """A causal language model of random weights with a byte-level tokenizer of ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=longest,
    ).save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=longest,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


def write_reviews(folder: Path, name: str = "sst2", repeats: int = 3) -> Path:
    """A task of GLUE with a sentence a line: ``train.tsv``, ``dev.tsv``, and a ``test.tsv`` without labels."""
    root = folder / name
    root.mkdir(parents=True)
    rows = [f"{text}\t{label}" for label, texts in ((1, GOOD), (0, BAD)) for text in texts]
    (root / "train.tsv").write_text("\n".join(["sentence\tlabel", *rows * repeats]) + "\n")
    (root / "dev.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    (root / "test.tsv").write_text("index\tsentence\n0\ta film\n")
    return root


def write_questions(path: Path, articles: int = 5) -> Path:
    """Questions in SQuAD's format, three an article, over contexts longer than the tiny models take."""
    data = []
    for a in range(articles):
        digit = str(a)
        filler = " ".join(WORDS)
        context = f"the year of {digit} . {filler} {filler} the film is {GOOD[0]} . {filler}"
        answers = {"the year ?": digit, "the film ?": GOOD[0], "the story ?": "honest , moving story"}
        qas = [
            {"id": f"{a}-{i}", "question": q, "answers": [{"text": t, "answer_start": context.index(t)}]}
            for i, (q, t) in enumerate(answers.items())
        ]
        data.append({"title": f"article {a}", "paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return path


def write_instructions(path: Path, count: int = 10) -> Path:
    """Records in the Alpaca format, every other one with an input."""
    records = [
        {"instruction": f"Say {WORDS[i]}.", "input": WORDS[i] if i % 2 else "", "output": f"{WORDS[i]} !"}
        for i in range(count)
    ]
    path.write_text(json.dumps(records))
    return path


def config(model: Path, data: str, out: Path, method: str = "goft", **changes: Any) -> FitConfig:
    """Settings of a run of a second or two."""
    values = {"model": str(model), "data": data, "out": str(out), "method": method, "epochs": 2, "batch_size": 4}
    return FitConfig(**{**values, "device": "cpu", **changes})
