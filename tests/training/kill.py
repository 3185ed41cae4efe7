"""Started by test_resume: forks one run per moment, each of which kills itself with SIGKILL at that moment.

Usage: kill.py DATA OUT MOMENT...; the run of a moment is in OUT/MOMENT. Prints the signal that ended each.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from orthotune.training import files, fit, fitting, loop
from training.tiny import config


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Patch the program so that it dies at ``moment``."""
    if moment == "first-epoch":
        after(loop.Trainer, "_update", calls=2)
    elif moment == "mid-epoch":
        after(loop.Trainer, "_update", calls=8)
    elif moment == "mid-save":
        count, save = [0], torch.save

        def half(value: Any, f: Any) -> None:
            count[0] += 1
            if count[0] == 3:
                f.write(b"half a checkpoint")
                f.flush()
                kill()
            save(value, f)

        files.torch.save = half
    elif moment == "mid-result":
        after(fitting, "draw_curve", calls=1)
    else:
        raise SystemExit(f"unknown moment {moment}")


def after(owner: Any, name: str, calls: int) -> None:
    """Kill the process when ``owner.name`` has returned so many times."""
    original, count = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        count[0] += 1
        if count[0] == calls:
            kill()
        return result

    setattr(owner, name, wrapped)


def main(data: Path, out: Path, moments: list[str]) -> None:
    torch.set_num_threads(1)
    for moment in moments:
        child = os.fork()
        if child == 0:
            arm(moment)
            fit(resumable(data, out / moment), quiet=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(moment, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "finished", flush=True)


def resumable(data: Path, out: Path) -> Any:
    """Settings of the interrupted and the uninterrupted run alike: dropout, augmentation, two learning rates."""
    return config(data, out, "qgoft", epochs=4, augment="fgvc", drop_path=0.2, dropout=0.1, head_lr=1e-2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
