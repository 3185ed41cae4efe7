"""What a sweep costs beside its runs, and whether it survives a kill and a cluster.

    python benchmarks/sweep/run.py --data cifar10 fashion_mnist caltech101 --weights tiny.pt --out runs/sweep
    python benchmarks/sweep/run.py ... --cluster

The first call starts `orthotune sweep` on subsets of the folders (links to the first images of each class), kills it
and all its processes with SIGKILL in the middle, starts it again and lets it finish; `--once` leaves out the kill. The
second call does the whole sweep once more through a Ray cluster of two nodes on this machine (two `ray start`) and
compares every score with the first one's. They write report.json and report-cluster.json into the output folder.

Wall time is that of the command from its start to its end, both starts together; the runs' own time is the sum of
`seconds` over the runs' trial.json, and overhead is wall * slots / own - 1. What the killed runs had done is overhead.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(1, str(Path(__file__).parents[1]))

from folders import subset
from processes import kill

from orthotune.training.files import write_json, write_text

METHODS = ["goft", "qgoft", "rlrr", "aoft", "lora", "bitfit"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", type=Path, help="folders with train/ and test/")
    parser.add_argument("--weights", required=True, type=Path, help="state dict of DeiT-Tiny")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--lr", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, nargs=2, default=[400, 200], metavar=("TRAIN", "TEST"))
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--slots", type=int, default=2, help="runs at once")
    parser.add_argument("--once", action="store_true", help="do not kill the sweep")
    parser.add_argument("--cluster", action="store_true", help="through two Ray nodes; compare with the first call")
    return parser.parse_args()


def settings(args: argparse.Namespace, out: Path, address: str | None) -> dict[str, Any]:
    """The sweep file."""
    args.out.mkdir(parents=True, exist_ok=True)
    return {
        "out": str(out.absolute()),
        "model": "deit_tiny_patch16_224",
        "weights": str(args.weights.absolute()),
        "tasks": {d.name: {"data": str(subset(d, args.out / f"data-{d.name}", *args.images))} for d in args.data},
        "methods": args.methods,
        "grid": {"lr": args.lr},
        "seeds": args.seeds,
        "selection": {"seeds": args.seeds},
        "fit": {"epochs": args.epochs, "batch_size": 32, "image_size": args.image_size, "device": "cpu"},
        "ray": {"cpus": 1, "address": address},
    }


def start(file: Path) -> subprocess.Popen[bytes]:
    with file.with_suffix(".log").open("ab") as log:
        command = [sys.executable, "-m", "orthotune", "sweep", str(file)]
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def run_until(file: Path, enough: Callable[[], bool]) -> tuple[float, int]:
    """(seconds, exit status) of the sweep, killed when ``enough``; a start that Ray did not survive does not count."""
    while True:
        begin, process = time.time(), start(file)
        while process.poll() is None and not enough():
            time.sleep(0.1)
        if process.poll() is None:
            kill(process)
        if process.returncode != 2:
            return time.time() - begin, process.returncode
        said = file.with_suffix(".log").read_text().strip().rpartition("\n")[2]
        if "Ray cannot be reached" not in said:
            raise SystemExit(said)
        time.sleep(30)


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Every trial.json by its run's identity."""
    return {p.parent.name: json.loads(p.read_text()) for p in out.glob("runs/*/trial.json")}


def report(args: argparse.Namespace, out: Path, wall: float) -> dict[str, Any]:
    found = records(out)
    own = sum(r["seconds"] for r in found.values())
    return {
        "runs": len(found),
        "failed": sum(r["status"] == "failed" for r in found.values()),
        "search": sum(r["phase"] == "search" for r in found.values()),
        "own_seconds": own,
        "mean_seconds": own / len(found),
        "wall_seconds": wall,
        "slots": args.slots,
        "overhead": wall * args.slots / own - 1,
        "scores": {id: r["score"] for id, r in sorted(found.items())},
    }


def here(args: argparse.Namespace) -> None:
    """The sweep on this machine, killed once."""
    out, file = args.out / "local", args.out / "local.yaml"
    write_text(file, yaml.safe_dump(settings(args, out, None), sort_keys=False))
    total = len(args.data) * len(args.methods) * len(args.seeds) * (len(args.lr) + 1)
    earlier = len(records(out))
    wall, killed_at = 0.0, None
    if not args.once and earlier < total // 2:
        seconds, _ = run_until(file, lambda: len(records(out)) >= total // 2)
        wall, killed_at = seconds, len(records(out))
    before = records(out)
    seconds, status = run_until(file, lambda: False)
    wall += seconds
    after = records(out)
    found = report(args, out, wall)
    found.update(
        killed_at=killed_at,
        exit_status=status,
        wall_covers_all=not earlier,
        untouched=all(after[id] == record for id, record in before.items()),
        folders=len(list(out.glob("runs/*"))),
    )
    write_json(args.out / "report.json", found)
    print(json.dumps({k: v for k, v in found.items() if k != "scores"}, indent=2))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def cluster(args: argparse.Namespace) -> None:
    """The sweep on two nodes of one slot each, in a folder of its own; every score is compared."""
    ray = str(Path(sys.executable).with_name("ray"))
    port = free_port()
    address = f"127.0.0.1:{port}"
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))  # of this cluster alone
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    common = ["--num-cpus", str(max(1, args.slots // 2)), "--num-gpus", "0", "--object-store-memory", str(100 << 20)]
    head = [
        ray,
        "start",
        "--head",
        "--port",
        str(port),
        "--node-ip-address",
        "127.0.0.1",
        "--include-dashboard",
        "false",
    ]
    other = [ray, "start", "--address", address, "--node-ip-address", "127.0.0.1"]
    nodes = [subprocess.Popen([*head, *common, "--block"], env=environment)]
    try:
        time.sleep(30)
        nodes.append(subprocess.Popen([*other, *common, "--block"], env=environment))
        time.sleep(30)
        out, file = args.out / "cluster", args.out / "cluster.yaml"
        write_text(file, yaml.safe_dump(settings(args, out, address), sort_keys=False))
        seconds, status = run_until(file, lambda: False)
        found = report(args, out, seconds)
    finally:
        for node in nodes:
            kill(node)
    local = json.loads((args.out / "report.json").read_text())["scores"]
    found.update(
        exit_status=status,
        same_runs=local.keys() == found["scores"].keys(),
        same_scores=local == found["scores"],
        largest_difference=max(abs(local[id] - score) for id, score in found["scores"].items() if id in local),
    )
    write_json(args.out / "report-cluster.json", found)
    print(json.dumps({k: v for k, v in found.items() if k != "scores"}, indent=2))


if __name__ == "__main__":
    arguments = parse()
    cluster(arguments) if arguments.cluster else here(arguments)
