"""Measure time and memory of training with adapters, relative to the same layer or model without one.

    python benchmarks/speed/run.py layers     # one linear layer, forward and backward
    python benchmarks/speed/run.py models     # a training step of ViT-B/16 and of Llama blocks
    python benchmarks/speed/run.py scaling    # how the ratio grows with width, tokens, bottleneck and depth
    python benchmarks/speed/run.py all

All contestants run in one process, each once per repeat, in a shuffled order. The ratio that is reported is the median
of the ratios within each repeat to the floor: the same, frozen and without an adapter, with the gradient flowing to its
input. What each section runs is told in layer_case.py and model_case.py, how memory is counted in memory.py. The result
is written as JSON after every case, with a Markdown table and plots made from it (report.py) beside it at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from contestants import FLOOR, find

RESULTS = Path(__file__).parent / "results"

# Freed memory stays with the process: otherwise large tensors are mapped anew each time, and the time is the kernel's.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}

SWEEPS = {
    "width": [256, 512, 1024, 2048, 4096],
    "tokens": [64, 256, 1024, 4096],
    "rank": [8, 32, 128, 512],
    "depth": [1, 3, 6, 12],
    "rotation": [1024, 2048, 4096, 8192, 16384],
}


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def shape(text: str) -> tuple[int, int]:
    """Parse ``768x3072``."""
    parts = text.split("x")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 768x3072")
    return positive(parts[0]), positive(parts[1])


def shapes(text: str) -> list[tuple[int, int]]:
    """Parse ``768x768,768x3072``."""
    return [shape(part) for part in text.split(",")]


def contestants(text: str) -> list[str]:
    """Parse ``goft,lora``, all of them known."""
    names = list(dict.fromkeys(text.split(",")))
    try:
        for name in names:
            find(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if names == [FLOOR]:
        raise argparse.ArgumentTypeError("the floor alone has nothing to be compared with: name a contestant")
    return names


def sweep(text: str) -> tuple[str, list[int]]:
    """Parse ``width=256,512``."""
    name, _, values = text.partition("=")
    if name not in SWEEPS:
        raise argparse.ArgumentTypeError(f"sweep {name!r} is unknown; known: {', '.join(SWEEPS)}")
    return name, [positive(value) for value in values.split(",")] if values else SWEEPS[name]


def parse() -> argparse.Namespace:
    """Parse the command line; of what concerns the device only the form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", choices=["layers", "models", "scaling", "all"], default="all")
    parser.add_argument(
        "--only", type=contestants, help="contestants, such as goft,lora,aoft-r64; the floor always runs"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and adapters")
    parser.add_argument("--threads", type=positive, default=2, help="of PyTorch on the CPU (default 2)")
    parser.add_argument("--repeats", type=positive, default=15, help="default 15")
    parser.add_argument("--warmup", type=positive, default=3, help="untimed repeats before (default 3)")
    parser.add_argument(
        "--no-peak", action="store_true", help="leave out peak memory: on a CPU it takes most of the time"
    )
    parser.add_argument(
        "--authors", metavar="FOLDER", help="holds the authors' code, which then takes part; authors.py"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: a name in benchmarks/speed/results")
    layers = parser.add_argument_group("layers, and scaling of layers")
    layers.add_argument(
        "--shapes", type=shapes, default="768x768,768x3072,3072x768", help="inputs x outputs (default %(default)s)"
    )
    layers.add_argument("--tokens", type=positive, default=1576, help="default 1576: 8 images of 197")
    models = parser.add_argument_group("models, and scaling with depth")
    models.add_argument("--vit", default="vit_base_patch16_224", help="a vision transformer of timm")
    models.add_argument("--batch", type=positive, default=4, help="images in a step (default 4)")
    models.add_argument(
        "--llama",
        type=shape,
        metavar="HIDDENxINTERMEDIATE",
        help="default 4096x11008 (7B) on a GPU, 1024x2816 on a CPU",
    )
    models.add_argument("--llama-tokens", type=positive, default=512, help="default 512")
    models.add_argument("--llama-layers", type=positive, default=1, help="default 1")
    scaling = parser.add_argument_group("scaling")
    scaling.add_argument(
        "--sweep",
        type=sweep,
        action="append",
        metavar="NAME[=V,V,...]",
        help=f"only these, with these values; may be repeated. Sweeps: {', '.join(SWEEPS)}",
    )
    args = parser.parse_args()
    args.sweep = dict(args.sweep or SWEEPS)
    if args.authors is not None and not Path(args.authors).is_dir():
        parser.error(f"--authors {args.authors!r} is not a folder")
    if args.output is not None and args.output.suffix != ".json":
        parser.error(f"--output {str(args.output)!r} does not end in .json")
    return args


def fix_allocator() -> None:
    """Start Python anew with glibc's allocator set as in ALLOCATOR, unless the user has set it."""
    missing = {key: value for key, value in ALLOCATOR.items() if key not in os.environ}
    if sys.platform == "linux" and missing:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def main() -> None:
    """Run the benchmark."""
    args = parse()
    fix_allocator()
    import timm
    import torch
    from machine import describe, versions
    from report import report, write
    from sections import measure, tasks
    from workload import Settings

    from orthotune.progress import say

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda: PyTorch finds no GPU here")
    if not timm.is_model(args.vit) or not args.vit.startswith("vit_"):
        sys.exit(f"error: --vit {args.vit!r} is not a vision transformer that timm knows (vit_...)")
    args.llama = args.llama or ((4096, 11008) if device == "cuda" else (1024, 2816))
    output = args.output or RESULTS / f"{args.section}_{device}_{args.dtype}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    gc.freeze()  # the libraries' objects, so that the collections between repeats are quick
    settings = Settings(
        device, args.dtype, args.threads, args.repeats, args.warmup, peak=not args.no_peak, authors=args.authors
    )
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/speed/run.py", *sys.argv[1:]]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe(settings),
        "versions": versions(),
        "settings": {"device": device, "dtype": args.dtype, "repeats": args.repeats, "warmup": args.warmup},
        "measurements": [],
    }
    for task in tasks(args):
        result["measurements"].append(measure(task, settings))
        write(output, json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    gc.unfreeze()
    if not result["measurements"]:
        sys.exit("error: --only leaves nothing to measure in this section")
    say(f"written: {output}")
    print(report(output))


if __name__ == "__main__":
    main()
