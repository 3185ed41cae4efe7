"""Where a result comes from: the machine, the versions of the libraries, the state of the code."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from workload import Settings

LIBRARIES = ("torch", "peft", "transformers", "timm")


def describe(settings: Settings) -> dict[str, Any]:
    """Return the machine as a dictionary for JSON."""
    cuda = settings.device == "cuda"
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "system": f"{platform.system()} {platform.machine()}",
        "malloc": {key: value for key, value in sorted(os.environ.items()) if key.startswith("MALLOC_")},
    }


def versions() -> dict[str, str | None]:
    """Return the versions of the libraries, and of orthotune the commit if it is a checkout."""
    found: dict[str, str | None] = {"python": platform.python_version(), "orthotune": _commit()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
