"""``orthotune answer``."""

from __future__ import annotations

import json
from pathlib import Path

from orthotune.cli.parser import Parser, add_run_options, check_new_file

_DESCRIPTION = """Answers of an instruction-tuned run to questions, as JSON lines for a judge (Vicuna-Eval).

  orthotune answer --run runs/alpaca --questions question.jsonl --out answers.jsonl

A line of --questions has question_id, and turns (one) or text."""


def run(arguments: list[str]) -> int:
    """Write the answers."""
    parser = Parser("orthotune answer", _DESCRIPTION)
    parser.option(parser, "--run", str, None, "run folder of an instruction-tuned model", required=True)
    parser.option(parser, "--questions", str, None, "JSONL file of questions", required=True)
    parser.option(parser, "--out", str, None, "JSONL file to write", required=True)
    parser.option(parser, "--max-new-tokens", int, 512, "longest answer")
    parser.option(parser, "--temperature", float, 0.0, "0: the most probable tokens; above: drawn ones")
    parser.option(parser, "--seed", int, 0, "of what is drawn")
    parser.option(parser, "--model-id", str | None, None, "the model's name for the judge; null: the run folder's")
    add_run_options(parser, batch_size=8)
    options = parser.read(arguments)
    check_new_file(options.out, options.overwrite)
    from orthotune.tasks.answering import Generation, answer
    from orthotune.training.files import write_text

    records = answer(
        options.run,
        options.questions,
        Generation(options.max_new_tokens, options.temperature, options.seed),
        model_id=options.model_id,
        weights=options.weights,
        batch_size=options.batch_size,
        device=options.device,
        quiet=options.quiet,
    )
    write_text(Path(options.out), "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    print(f"{len(records)} answers written to {options.out}")
    return 0
