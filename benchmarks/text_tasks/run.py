"""Every task of texts through ``orthotune fit``: CoLA, SST-2 and SQuAD on an encoder, instructions on a random Llama.

    python benchmarks/text_tasks/run.py --encoder all-MiniLM-L6-v2 --data DATA --methods goft lora linear \
        --lr 0.01 0.001 0.001 --out runs/text-tasks

--encoder is a folder that transformers reads without network; --data holds ``glue/cola``, ``glue/sst2``, a file in
SQuAD's format ``squad/*.json`` (split by article), one in the Alpaca format ``alpaca/*.json``, ``mmlu`` and
``vicuna/question.jsonl``. The Llama has random weights and a tokenizer built from the instructions: what becomes of it
shows that the machinery works, and nothing else; it learns under the first method alone. A killed call continues where
it stopped. Writes ``results.json`` and ``table.md``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from orthotune.tasks.answering import Generation, answer
from orthotune.tasks.mmlu import mmlu
from orthotune.texts import read
from orthotune.training import FitConfig, Metrics, fit
from orthotune.training.files import write_json, write_text

# nothing is chosen by validation: the last epoch is kept
SHARED = {"validation": "none", "batch_size": 16, "weight_decay": 0.01, "clip": 1.0}
TASKS: dict[str, dict[str, Any]] = {
    "cola": {"max_length": 64, "epochs": 4},
    "sst2": {"max_length": 64, "epochs": 2, "train_limit": 4000},
    "squad": {"max_length": 256, "stride": 64, "epochs": 10, "batch_size": 8},
    "instruct": {"max_length": 256, "epochs": 1},
}


def parse() -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="folder of a transformers encoder")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=["goft"])
    parser.add_argument("--lr", nargs="+", type=float, help="of each method; its registry's otherwise")
    parser.add_argument("--head-lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, help="instead of each task's own number")
    parser.add_argument("--mmlu-limit", type=int, default=2, help="questions of each subject")
    parser.add_argument("--new-tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if args.lr and len(args.lr) != len(args.methods):
        parser.error(f"--lr has {len(args.lr)} rates for {len(args.methods)} methods")
    return args


def runs(args: argparse.Namespace) -> dict[str, FitConfig]:
    """Return the settings of each run, by task and method."""
    squad, alpaca = (next((args.data / name).glob("*.json")) for name in ("squad", "alpaca"))
    data = {"cola": f"glue:{args.data}/glue/cola", "sst2": f"glue:{args.data}/glue/sst2"}
    data |= {"squad": f"squad:{squad}", "instruct": f"alpaca:{alpaca}"}
    found = {}
    for task in args.tasks:
        for i, method in enumerate(args.methods if task != "instruct" else args.methods[:1]):
            values = {**SHARED, **TASKS[task], "data": data[task], "method": method, "device": args.device}
            values["model"] = str(args.out / "llama") if task == "instruct" else args.encoder
            if task != "instruct":
                values |= {"head_lr": args.head_lr, "lr": args.lr[i] if args.lr else None}
            if args.epochs is not None:
                values["epochs"] = args.epochs
            found[f"{task}-{method}"] = FitConfig(out=str(args.out / f"{task}-{method}"), **values)
    return found


def make_llama(folder: Path, data: str) -> None:
    """Write a Llama of random weights, with a byte-level tokenizer of the texts of ``data``."""
    records = read(data, "none").splits["train"]
    texts = (text for record in records for text in (record.prompt(), record.output))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=1024)
    fast.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))


def after_tuning(args: argparse.Namespace, run: str) -> dict[str, Any]:
    """Return MMLU's accuracies, and how many answers were written, of the instruction-tuned run."""
    found = mmlu(run, args.data / "mmlu", (0, 5), limit=args.mmlu_limit, device=args.device)
    how = Generation(max_new_tokens=args.new_tokens)
    answers = answer(run, args.data / "vicuna" / "question.jsonl", how, device=args.device)
    write_text(args.out / "answers.jsonl", "".join(json.dumps(record) + "\n" for record in answers))
    shots = {key: found[key] for key in found if key.endswith("-shot")}
    kept = {name: {k: v for k, v in scores.items() if k != "subjects"} for name, scores in shots.items()}
    return {"mmlu": {"limit": found["limit"], "lm_eval": found["lm_eval"], **kept}, "answers": len(answers)}


def summary(metrics: Metrics) -> dict[str, Any]:
    """Return what is kept of a run."""
    keys = ("method", "lr", "head_lr", "epochs", "batch_size", "max_length", "seed")
    return {
        "settings": {key: metrics.config[key] for key in keys},
        "data": metrics.data,
        "parameters": metrics.parameters,
        "test": metrics.test,
        "last": metrics.curve[-1],
        "train_seconds": metrics.train_seconds,
        "step_seconds_median": metrics.step_seconds_median,
        "versions": metrics.versions,
    }


def row(name: str, metrics: Metrics) -> str:
    """Return a line of the table."""
    data, test = metrics.data, metrics.test
    counts = [f"{data[part]['examples']:,}" if data[part] else "-" for part in ("train", "val", "test")]
    scores = test or {key: metrics.curve[-1][key] for key in ("train_loss", "train_accuracy")}
    shown = ", ".join(f"{key} {value:.3f}" for key, value in scores.items() if isinstance(value, float))
    return (
        f"| {name} | {metrics.config['method']} | {' / '.join(counts)} | {metrics.parameters['adapter']:,} | "
        f"{metrics.train_seconds:.0f} s | {metrics.step_seconds_median:.2f} s | {shown} |"
    )


def main() -> None:
    """Run what is not there yet, and write the results."""
    args = parse()
    head = "| task | method | train / val / test | adapter parameters | training | update | scores |"
    lines, results = [head, "|---|---|---|---|---|---|---|"], {}
    for name, config in runs(args).items():
        task = name.partition("-")[0]
        if task == "instruct" and not Path(config.model, "config.json").is_file():
            make_llama(Path(config.model), config.data)
        metrics = fit(config, resume=True)
        lines.append(row(task, metrics))
        results[name] = summary(metrics)
        if task == "instruct":
            results[name] |= after_tuning(args, config.out)
    write_json(args.out / "results.json", results)
    write_text(args.out / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
