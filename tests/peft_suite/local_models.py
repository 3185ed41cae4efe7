"""Small random transformers in place of those that PEFT's tests take from the Hub, under their names."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import transformers as tf

from peft_suite.source import CACHE

TEXT = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}
WIDE = {**TEXT, "intermediate_size": 32, "max_position_embeddings": 64}
GATED = {**WIDE, "num_key_value_heads": 1, **TOKENS}
GPT = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 4, **TOKENS}


def _opt() -> tf.PreTrainedModel:
    sizes = {**TEXT, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64, **TOKENS}
    return tf.OPTForCausalLM(tf.OPTConfig(**sizes))


def _gpt_neo() -> tf.PreTrainedModel:
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
    return tf.GPTNeoForCausalLM(tf.GPTNeoConfig(**sizes, **TOKENS, attention_types=[[["global", "local"], 1]]))


def _t5() -> tf.PreTrainedModel:
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return tf.T5ForConditionalGeneration(tf.T5Config(**sizes, decoder_start_token_id=0))


def _bart() -> tf.PreTrainedModel:
    sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes = {"vocab_size": 64, "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, **sides}
    tokens = {**TOKENS, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
    return tf.BartForConditionalGeneration(tf.BartConfig(**sizes, **tokens, max_position_embeddings=64))


def _resnet() -> tf.PreTrainedModel:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "num_labels": 3}
    return tf.ResNetForImageClassification(tf.ResNetConfig(**sizes, problem_type="multi_label_classification"))


BUILDERS: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "tiny-random-OPTForCausalLM": _opt,
    "tiny-random-GPT2LMHeadModel": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT)),
    "tiny-random-GPTJForCausalLM": lambda: tf.GPTJForCausalLM(tf.GPTJConfig(**GPT)),
    "tiny-random-gpt_neo": _gpt_neo,
    "tiny-random-GPTBigCodeForCausalLM": lambda: tf.GPTBigCodeForCausalLM(tf.GPTBigCodeConfig(**GPT)),
    "tiny-random-BloomForCausalLM": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2, **TOKENS)
    ),
    "tiny-random-LlamaForCausalLM": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**GATED)),
    "tiny-dummy-qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GATED)),
    "tiny-random-Gemma3ForCausalLM": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**GATED, head_dim=8)),
    "tiny-random-T5ForConditionalGeneration-calibrated": _t5,
    "tiny-random-BartForConditionalGeneration": _bart,
    "tiny-random-BertModel": lambda: tf.BertModel(tf.BertConfig(**WIDE)),
    "tiny-random-RobertaModel": lambda: tf.RobertaModel(tf.RobertaConfig(**WIDE)),
    "tiny-random-DebertaModel": lambda: tf.DebertaModel(tf.DebertaConfig(**WIDE)),
    "tiny-random-DebertaV2Model": lambda: tf.DebertaV2Model(tf.DebertaV2Config(**WIDE)),
    "tiny-random-BertForSequenceClassification": lambda: tf.BertForSequenceClassification(tf.BertConfig(**WIDE)),
    "tiny-random-RobertaForSequenceClassification": lambda: tf.RobertaForSequenceClassification(
        tf.RobertaConfig(**WIDE)
    ),
    "tiny-LlamaForSequenceClassification-3.2": lambda: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(**GATED, num_labels=1)
    ),
    "tiny-random-ResNetForImageClassification": _resnet,
}


def saved(hub_ids: Iterable[str]) -> list[str]:
    """Save the stand-ins for models of the Hub, where that is not yet done, and return their paths."""
    return [_save(hub_id.rpartition("/")[2]) for hub_id in hub_ids]


def _save(name: str) -> str:
    this_file = zlib.crc32(Path(__file__).read_bytes())
    path = CACHE / f"models-{tf.__version__}-{this_file:08x}" / name
    if path.exists():
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        torch.manual_seed(0)
        model = BUILDERS[name]()
        if model.can_generate():
            model.generation_config.max_new_tokens = 4
        model.save_pretrained(f"{folder}/{name}")
        if name.endswith("ForImageClassification"):
            tf.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(f"{folder}/{name}")
        try:
            Path(folder, name).rename(path)  # one step, so that another process never sees half of it
        except OSError:
            if not path.exists():
                raise
    return str(path)
