"""Compile ``kernels.cpp`` for this processor, once, into the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
# -march=native: the vectors of the processor at hand. OpenMP's threads are then the ones that torch computes with.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return where the compiled kernels are kept: ``$XDG_CACHE_HOME/orthotune``, by default ``~/.cache/orthotune``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "orthotune"


def compiled(real: str) -> Path | None:
    """Return the shared library for ``real``, "float" or "double", compiling it if the cache has none.

    Returns None, and logs the reason, where there is no compiler or it fails.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        logger.info("no C++ compiler was found: the CPU kernels are computed in PyTorch")
        return None
    command = [*compiler.split(), *FLAGS, f"-DREAL={real}"]
    library = cache_folder() / f"kernels-{_key(command)}.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / "kernels.so"
            subprocess.run([*command, str(SOURCE), "-o", str(built)], check=True, capture_output=True, text=True)
            built.replace(library)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        logger.info("the CPU kernels could not be compiled, they are computed in PyTorch: %s", reason)
        return None
    return library


def _key(command: list[str]) -> str:
    """Hash what the compiled code depends on: its source, the command and the processor."""
    parts = [SOURCE.read_text(), *command, platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Name the processor's instruction set, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
