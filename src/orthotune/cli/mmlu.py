"""``orthotune mmlu``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from orthotune.cli.parser import Parser, add_run_options, check_new_file
from orthotune.errors import InputError

_DESCRIPTION = """Accuracy of an instruction-tuned run on MMLU, by lm-evaluation-harness on local files.

  orthotune mmlu --run runs/alpaca --data mmlu --shots [0,5] --out mmlu.json

--data holds dev/SUBJECT_dev.csv and test/SUBJECT_test.csv. Needs the extra: pip install 'orthotune[text]'"""


def run(arguments: list[str]) -> int:
    """Print a row for each number of shots, and write all of it as JSON with ``--out``."""
    parser = Parser("orthotune mmlu", _DESCRIPTION)
    parser.option(parser, "--run", str, None, "run folder of an instruction-tuned model", required=True)
    parser.option(parser, "--data", str, None, "folder of MMLU's CSV files", required=True)
    parser.option(parser, "--shots", list[int], [0, 5], "examples shown before a question", metavar="[N,...]")
    parser.option(parser, "--limit", int | None, None, "only so many questions of each subject")
    parser.option(parser, "--out", str | None, None, "JSON file to write")
    add_run_options(parser, batch_size=8, quiet=False)
    options = parser.read(arguments)
    check_new_file(options.out, options.overwrite)
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit is {options.limit}; it must be at least 1")
    from orthotune.tasks.mmlu import mmlu
    from orthotune.training.files import write_json

    found = mmlu(
        options.run,
        options.data,
        options.shots,
        limit=options.limit,
        weights=options.weights,
        batch_size=options.batch_size,
        device=options.device,
    )
    rows = {name: value for name, value in found.items() if name.endswith("-shot")}
    columns = [name for name in next(iter(rows.values()), {}) if name != "subjects"]
    table = Table("", *(name.replace("_", " ") for name in columns), box=None)
    for name, row in rows.items():
        table.add_row(name, *(str(row[c]) if c == "questions" else f"{row[c]:.2%}" for c in columns))
    Console().print(table, highlight=False)
    if options.out:
        write_json(Path(options.out), found)
    return 0
