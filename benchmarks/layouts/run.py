"""Make synthetic copies of the 24 tasks of VTAB-1k and FGVC at their true counts; check each, damage it, check again.

    python benchmarks/layouts/run.py --root FOLDER --out benchmarks/layouts/results/layouts.csv

One task at a time is on disk; --images shrinks the splits, --only names tasks, --keep leaves the copies.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import time
from pathlib import Path
from typing import get_args

from layouts import Damage, Shrink, damage, make, tasks

from orthotune.data.check import check
from orthotune.training.files import write_text

_HEAD = ("protocol", "task", "classes", "train", "val", "test", "files", "megabytes", "make_s", "check_s", "problems")


def main() -> int:
    """0 if every intact copy is without problems and every damage is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder for the copies")
    parser.add_argument("--out", type=Path, help="CSV file of what was found")
    parser.add_argument("--images", type=int, help="at most so many images of a split")
    parser.add_argument("--only", help="tasks, with commas between")
    parser.add_argument("--keep", action="store_true", help="leave the copies, intact; no damage is done")
    options = parser.parse_args()
    only = options.only.split(",") if options.only else None
    rows, good = [], True
    for protocol, task in tasks():
        if only is not None and task.name not in only:
            continue
        data = task.at(str(options.root)).data
        start = time.perf_counter()
        folder = make(options.root, protocol, task, Shrink(options.images))
        made = time.perf_counter()
        checked = check(data, task.expect)
        done = time.perf_counter()
        files = [p for p in folder.rglob("*") if p.is_file()]
        size = sum(p.stat().st_size for p in files) / 1e6
        severe = [p for p in checked.problems if p.severity != "note"]
        row = [protocol.name, task.name, *checked.counts.values(), len(files), f"{size:.1f}"]
        row += [f"{made - start:.1f}", f"{done - made:.1f}", len(severe)]
        if not options.keep:
            for kind in get_args(Damage):
                shutil.copytree(folder, spoilt := folder.with_name("spoilt") / folder.name, copy_function=_link)
                image = damage(spoilt, kind)
                found = check(str(spoilt).join(data.split(str(folder))), task.expect, quick=True).problems
                named = any(p.severity == "error" and image in p.text for p in found)
                row.append("named" if named else "MISSED")
                good &= named
                shutil.rmtree(spoilt.parent)
            shutil.rmtree(folder)
        good &= not severe
        rows.append(row)
        print(*row, *[f"\n    {p.severity}: {p.text}" for p in severe[:5]], flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows([[*_HEAD, *map(str, get_args(Damage))], *rows])
            write_text(options.out, table.getvalue())
    return int(not good)


def _link(source: str, target: str) -> str:
    """Images as hard links; the lists as copies, since damage rewrites them."""
    if source.endswith((".txt", ".json")):
        return shutil.copyfile(source, target)
    Path(target).hardlink_to(source)
    return target


if __name__ == "__main__":
    raise SystemExit(main())
