"""Make the Markdown table and the plots of a result: ``python benchmarks/speed/report.py result.json``.

Everything comes from the JSON file; ``result.md`` and ``result_<section>.png`` are written beside it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from plots import draw
from tables import markdown


def report(path: Path) -> str:
    """Write table and plots of the result file ``path`` beside it, and return the table."""
    result = json.loads(path.read_text(encoding="utf-8"))
    pictures = draw(result, path.with_suffix(""))
    text = markdown(result, [picture.name for picture in pictures])
    write(path.with_suffix(".md"), text)
    return text


def write(path: Path, text: str) -> None:
    """Replace a file at once, so that an interruption leaves the old one."""
    temporary = path.with_name(f".partial-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="the JSON file that run.py wrote")
    args = parser.parse_args()
    if not args.result.is_file():
        parser.error(f"{str(args.result)!r} is not a file")
    print(report(args.result))


if __name__ == "__main__":
    main()
