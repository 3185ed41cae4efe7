"""``orthotune fit``."""

from __future__ import annotations

import argparse
import dataclasses
import re
import textwrap
import typing
from pathlib import Path
from typing import Any

from orthotune.cli.parser import Parser
from orthotune.fields import TARGETS_HELP, adapter_fields, type_text
from orthotune.methods import METHODS
from orthotune.training.config import FitConfig, flag, read_yaml
from orthotune.training.run import RunFolder

_GROUPS = ("model", "data", "method", "optimisation", "run")
_DESCRIPTION = """Fine-tune a model on images or texts.

  orthotune fit --model vit_tiny_patch16_224 --data FOLDER --method rlrr --out runs/rlrr
  orthotune fit --model microsoft/deberta-v3-base --data glue:FOLDER/cola --method goft --out runs/cola
  orthotune fit --config runs/rlrr/config.yaml --seed 1 --out runs/rlrr-1
  orthotune fit --resume --out runs/rlrr

--method NAME --help also lists the adapter fields of that method. Flags override --config."""


def build_parser(method: str | None = None) -> Parser:
    """The flags of FitConfig, in its groups; with the adapter fields of ``method`` in the help."""
    parser = Parser("orthotune fit", _DESCRIPTION)
    hints = typing.get_type_hints(FitConfig)
    groups = {name: parser.add_argument_group(name) for name in _GROUPS}
    for f in dataclasses.fields(FitConfig):
        default = None if f.default is dataclasses.MISSING else f.default
        # A missing setting is FitConfig's error: it may still come from --config or the run to resume.
        hint = hints[f.name] | None if hints[f.name] is str else hints[f.name]
        more: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if hint is bool else {}
        text = f.metadata["help"]
        if f.name == "method":
            more["metavar"], text = "{" + ",".join(METHODS) + "}", "the method"
        parser.option(
            groups[f.metadata["group"]], flag(f.name), hint, {} if "dict" in str(hint) else default, text, **more
        )
    run = groups["run"]
    run.add_argument("--config", metavar="FILE", help="YAML file with any of these settings")
    parser.option(run, "--resume", bool, False, "continue the run in --out (its settings are the defaults)")
    parser.option(run, "--overwrite", bool, False, "replace the run in --out")
    parser.option(run, "--quiet", bool, False, "no progress bars and messages")
    if method in METHODS and adapter_fields(method):
        parser.epilog = _adapter_help(method)
    return parser


def _adapter_help(method: str) -> str:
    lines = [f"adapter fields of {method} (--adapter.NAME VALUE):"]
    if METHODS[method].is_adapter:
        lines += textwrap.wrap(TARGETS_HELP, 96)
    for name, (hint, default, text) in adapter_fields(method).items():
        lines.append(f"  {name} ({type_text(hint)}) [{'null' if default is None else default}]")
        lines += textwrap.wrap(textwrap.shorten(text, 200), 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def parse(arguments: list[str]) -> tuple[FitConfig, dict[str, bool]]:
    """(settings, {resume, overwrite, quiet}): defaults < the run to resume < --config < flags."""
    parser = build_parser(_value(arguments, "--method"))
    given = _given(parser, arguments)
    switches = {name: bool(given.pop(name, False)) for name in ("resume", "overwrite", "quiet")}
    values: dict[str, Any] = {}
    config = given.pop("config", None)
    file = read_yaml(config) if config else {}
    out = given.get("out") or file.get("out")
    if switches["resume"] and out and RunFolder(Path(out)).is_run():
        values.update(read_yaml(RunFolder(Path(out)).config))
    for source in (file, given):
        for key, value in source.items():
            nested = isinstance(value, dict) and isinstance(values.get(key), dict) and source is given
            values[key] = {**values[key], **value} if nested else value
    return FitConfig.from_mapping(values, config or "fit"), switches


def _given(parser: Parser, arguments: list[str]) -> dict[str, Any]:
    """Only what the command line says, without defaults."""
    namespace = parser.read(arguments)
    defaults = parser.get_defaults().as_dict()
    flags = (re.split(r"[=.]", a.removeprefix("--"))[0] for a in arguments if a.startswith("--"))
    said = {name.removeprefix("no-").replace("-", "_") for name in flags}
    return {k: v for k, v in namespace.as_dict().items() if k in said or v != defaults.get(k)}


def _value(arguments: list[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument.startswith(name + "="):
            return argument.partition("=")[2]
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def run(arguments: list[str]) -> int:
    """Run the command."""
    config, switches = parse(arguments)
    from orthotune.tasks import task_class
    from orthotune.training.fitting import fit
    from orthotune.training.metrics import validation_score

    metrics = fit(config, resume=switches["resume"], overwrite=switches["overwrite"], quiet=switches["quiet"])
    name, unit = metrics.metric.replace("_", " ").replace("top1", "accuracy"), task_class(config.task or "image").unit
    score = validation_score(metrics.best)
    if score is not None:
        print(f"best epoch {metrics.best['epoch']}: validation {name} {score:.2%}")
    if metrics.test is None:
        print("no test data: not tested")
    else:
        print(f"test {name} {metrics.test_score:.2%} on {metrics.test[unit]} {unit}")
    counts = metrics.parameters
    print(
        f"{counts['trainable']:,} of {counts['total']:,} parameters trained "
        f"({counts['adapter']:,} adapter, {counts['head']:,} head)"
    )
    print(f"written to {config.out}")
    return 0
