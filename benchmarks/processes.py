"""Ending a process hard, with everything it started."""

from __future__ import annotations

import os
import signal
import subprocess

import psutil


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and to everything that it started."""
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        try:
            os.kill(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
