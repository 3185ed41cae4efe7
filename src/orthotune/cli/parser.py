"""jsonargparse with our errors: one line, with near names, raised as InputError."""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from orthotune.errors import InputError
from orthotune.fields import type_text
from orthotune.methods import near


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Options in one column, wide enough for our names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        """A short usage line instead of every option twice."""
        super().add_usage(usage or f"{self._prog} [options]", actions, groups, prefix)


class Parser(ArgumentParser):
    """A parser whose errors are InputErrors; remembers each option's type to say what was expected."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog, description=description, exit_on_error=False, allow_abbrev=False, formatter_class=HelpFormatter
        )
        self.types: dict[str, Any] = {}

    def option(self, group: Any, name: str, hint: Any, default: Any, text: str, **more: Any) -> None:
        """Add ``--name`` of type ``hint``; its help ends with the default where there is one."""
        self.types[name.lstrip("-").replace("-", "_")] = hint
        if hint is bool:
            group.add_argument(name, default=default, help=text, **{"action": "store_true", **more})
            return
        shown = "" if default is None or default == {} else f" [{default}]"
        metavar = more.pop("metavar", None) or _metavar(hint)
        group.add_argument(name, type=hint, default=default, help=text + shown, metavar=metavar, **more)

    def read(self, arguments: Sequence[str]) -> Namespace:
        """Parse; InputError instead of an exit (``--help`` still exits with 0)."""
        try:
            return self.parse_args(_join_underscores(arguments, self._known()))
        except (ArgumentError, TypeError, ValueError) as error:
            raise InputError(self._explain(str(error), arguments)) from error

    def _known(self) -> list[str]:
        return [s for a in self._actions for s in a.option_strings if s.startswith("--")]

    def _explain(self, message: str, arguments: Sequence[str]) -> str:
        unknown = re.search(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
        if unknown:
            name = unknown[1].partition("=")[0]
            if name.startswith("--"):
                return f"option {name} is unknown; {near(name, self._known())}"
            return f"argument {name!r} is not expected: options start with --"
        key = re.search(r"Parser key \"([\w.]+)\"", message)
        if key and key[1] in self.types:
            option = "--" + key[1].replace("_", "-")
            value = re.search(r"(?:Given value|Got value): (.*)", message)
            found = f" is {value[1].strip()!r}, which" if value else ""
            return f"{option}{found} is not {type_text(self.types[key[1]])}"
        accepted = re.search(r"(?:Option|Key) '([\w.]+)' is not", message)
        if accepted:
            return f"setting {accepted[1]!r} is unknown; {near(accepted[1], self.types)}"
        return " ".join(message.split())


def _join_underscores(arguments: Iterable[str], known: Sequence[str]) -> list[str]:
    """``--image_size`` as ``--image-size``: the YAML spelling of an option is accepted, too."""
    result = []
    for argument in arguments:
        name, sep, value = argument.partition("=")
        dashed = name.replace("_", "-")
        result.append(dashed + sep + value if name not in known and dashed in known else argument)
    return result


def _metavar(hint: Any) -> str | None:
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    text = str(hint)
    for part, name in (("dict", "NAME=VALUE"), ("tuple", "[R,G,B]"), ("int", "N"), ("float", "X")):
        if part in text:
            return name
    return "TEXT"


def add_run_options(parser: Parser, batch_size: int = 64, quiet: bool = True) -> None:
    """The options that the commands on a finished run share."""
    parser.option(parser, "--weights", str | None, None, "the base weights, if they have moved since the run")
    parser.option(parser, "--batch-size", int, batch_size, "examples per forward pass")
    parser.option(parser, "--device", str, "auto", "auto, cpu, cuda, ...")
    parser.option(parser, "--overwrite", bool, False, "replace the file --out")
    if quiet:
        parser.option(parser, "--quiet", bool, False, "no progress bars")


def add_base_options(parser: Parser, required: bool, name: bool = True) -> None:
    """The options that name a base model where there is no run to take it from; ``--model`` itself if ``name``."""
    if name:
        parser.option(
            parser, "--model", str | None, None, "timm name, or transformers hub id or directory", required=required
        )
    parser.option(parser, "--weights", str | None, None, "file of the base weights instead of the hub's")
    parser.option(parser, "--image-size", int | None, None, "pixels a side, if not the model's own")
    parser.option(parser, "--model-args", dict[str, Any], {}, "further arguments of the architecture")


def check_new_file(path: str | None, overwrite: bool) -> None:
    """InputError unless ``path`` (if any) can be written without replacing anything, or ``overwrite``."""
    if path is None:
        return
    if not Path(path).parent.is_dir():
        raise InputError(f"--out {path!r}: the folder {str(Path(path).parent)!r} does not exist")
    if Path(path).is_dir() or (Path(path).exists() and not overwrite):
        raise InputError(f"--out {path!r} already exists: add --overwrite or give another name")
