"""What a run is, as a hash: its settings, the bytes of its data and weights, and the code that executes it.

A run with the same identity has the same result, so it is never executed twice.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orthotune
from orthotune.errors import InputError
from orthotune.training.config import RUNTIME_FIELDS
from orthotune.training.files import write_json

#: Parts of this package that no run executes; a change there makes no result new.
_NOT_IN_RUNS = frozenset(
    {"analysis", "cli", "demo", "experiments", "exporting", "papers", "protocols", "reporting", "studies"}
)


@functools.cache
def code_version() -> str:
    """The version, and the first half of the SHA-256 of the source that runs execute."""
    root = Path(orthotune.__file__).parent
    files = (p for p in root.rglob("*") if p.suffix in (".py", ".cpp", ".cu"))
    used = sorted(p for p in files if p.relative_to(root).parts[0] not in _NOT_IN_RUNS)
    digest = hashlib.sha256()
    for path in used:
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return f"{orthotune.__version__}+{digest.hexdigest()[:32]}"


def run_id(labels: Iterable[str], settings: Mapping[str, Any], prints: Mapping[str, str]) -> str:
    """16 hexadecimal digits of the SHA-256 of what a run is.

    ``labels`` say what it is for (phase, task, row), ``settings`` are all fields of its FitConfig, ``prints`` are
    the fingerprints that stand for the settings that are paths: the files' content counts, not where they lie.
    """
    kept = {k: v for k, v in settings.items() if k not in RUNTIME_FIELDS}
    what = {"labels": list(labels), "settings": {**kept, **prints}, "code": code_version()}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class Fingerprints:
    """SHA-256 over the names and bytes of files and folders, remembered in a file as long as sizes and times stay."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._seen: dict[str, str] = {}
        self._known: dict[str, dict[str, str]] = {}
        if memory is not None and memory.is_file():
            try:
                self._known = json.loads(memory.read_text())
            except json.JSONDecodeError:  # no more than a memory
                self._known = {}

    def of(self, where: str) -> str:
        """``where`` with the fingerprint of the file or folder in the path's place; as it is for a name on a hub.

        A place is looked at once. InputError for a path that does not exist or holds nothing.
        """
        if where not in self._seen:
            self._seen[where] = self._look(where)
        return self._seen[where]

    def _look(self, where: str) -> str:
        before, path, after = locate(where)
        if path is None:
            return where
        files = sorted(_files(path)) if path.is_dir() else [path]
        if not files:
            raise InputError(f"folder {str(path)!r} holds no files")
        names = [p.relative_to(path.parent if path.is_file() else path).as_posix() for p in files]
        stats = [p.stat() for p in files]
        listing = [f"{n} {s.st_size} {s.st_mtime_ns}" for n, s in zip(names, stats, strict=True)]
        stat = hashlib.sha256("\n".join(listing).encode()).hexdigest()
        known = self._known.get(str(path))
        if known is None or known["stat"] != stat:
            known = {"stat": stat, "sha256": _content(files, names)}
            self._known[str(path)] = known
            if self._memory is not None:
                write_json(self._memory, self._known)
        return f"{before}{known['sha256']}{after}"


def locate(where: str) -> tuple[str, Path | None, str]:
    """(what stands before the path, the path, what follows) of ``PATH`` and ``SCHEME:[NAME@]PATH[?OPTIONS]``.

    The path is None for a name on a hub (``hf:NAME``). InputError if it does not exist.
    """
    scheme, colon, rest = where.partition(":")
    has_scheme = bool(colon) and len(scheme) > 1 and "/" not in scheme
    place, mark, options = rest.partition("?") if has_scheme else (where, "", "")
    text = place.rpartition("@")[2] if has_scheme else place
    path = Path(text)
    if path.exists():
        after = mark + options
        return where.removesuffix(text + after), path, after
    if has_scheme and scheme == "hf" and not text.startswith((".", "/")):
        return where, None, ""
    raise InputError(f"{where!r} does not exist")


def absolute(where: str) -> str:
    """The same place whatever the working directory."""
    before, path, after = locate(where)
    return before if path is None else f"{before}{path.absolute()}{after}"


def _files(folder: Path) -> Iterator[Path]:
    """All files below ``folder`` but hidden ones, through links, too."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _content(files: list[Path], names: list[str]) -> str:
    total = hashlib.sha256()
    with ThreadPoolExecutor(2) as pool:
        for name, digest in zip(names, pool.map(_digest, files), strict=True):
            total.update(f"{name} {digest}\n".encode())
    return total.hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
