"""Entry point: picks the command, and turns an InputError into one line and exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from keyword import iskeyword

from orthotune.errors import InputError
from orthotune.methods import near

COMMANDS = {
    "fit": "fine-tune a model on images or texts",
    "evaluate": "scores of a finished run on a split of other data",
    "predict": "class and probability of single images",
    "answer": "answers of an instruction-tuned run to questions, for a judge",
    "mmlu": "accuracy of an instruction-tuned run on MMLU, by lm-evaluation-harness",
    "merge": "write the plain model with the adapter merged into its weights",
    "export": "write a run as a plain LoRA, ONNX, torch.export or a folder for the Hub",
    "import": "make an adapter of a checkpoint of the RLRR authors' code",
    "push": "upload a run's adapter and its model card to the Hub",
    "data": "check data sets, and list those of the benchmark protocols",
    "sweep": "methods x tasks x grid x seeds on one machine or a Ray cluster",
    "inspect": "what an adapter did to a model: angles, spectra, movement, features",
    "methods": "list the methods, or the adapter fields of one of them",
    "parameters": "how many parameters each method trains, beside the papers' figures",
    "table": "a table of the papers' shape from the results of runs, beside the paper's numbers",
    "report": "one HTML file of the results of runs: tables, curves, costs, settings",
    "demo": "six methods on real images in about a minute; needs no network and no data",
}

_INTRO = """usage: orthotune COMMAND [options]

Fine-tune image and text models with GOFT, qGOFT, RLRR, AOFT and others.

commands:
{commands}

'orthotune COMMAND --help' lists the options of a command.

example:
  orthotune fit --model vit_tiny_patch16_224 --data FOLDER --method rlrr --out runs/rlrr
  orthotune evaluate --run runs/rlrr --data FOLDER
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``orthotune``; 0 on success, 2 for input that cannot be used, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; fit --resume, or sweep as before, continues after the last finished epoch", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(_INTRO.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())))
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from orthotune import __version__

        print(f"orthotune {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise InputError(f"command {name!r} is unknown; {near(name, COMMANDS)}")
    command: Callable[[list[str]], int] = import_module(f"orthotune.cli.{name}{'_' * iskeyword(name)}").run
    return command(rest)
