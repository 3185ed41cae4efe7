"""The pages: what a command printed into one is what it prints now, and links lead somewhere.

``python tests/test_docs.py`` prints into the pages anew.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from orthotune.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
#: The output of a command between two comments, of which the first is the command.
PRINTED = re.compile(
    r"(?<=<!-- orthotune )(?P<command>[^>]*)(?P<mark> -->\n\n)(?P<output>.*?)(?=\n<!-- end -->)", re.DOTALL
)


def printed(command: str) -> str:
    """What ``orthotune command`` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(command.split()) == 0
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "command", "output"),
    [pytest.param(p, m["command"], m["output"], id=p.name) for p in PAGES for m in PRINTED.finditer(p.read_text())],
)
def test_a_page_holds_what_the_command_prints(page: Path, command: str, output: str) -> None:
    assert output == printed(command)


def test_the_methods_page_has_the_table_of_the_registry() -> None:
    assert [m["command"] for m in PRINTED.finditer((ROOT / "docs/methods.md").read_text())] == [
        "methods --format markdown"
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


if __name__ == "__main__":
    for page in PAGES:
        if PRINTED.search(text := page.read_text()):
            page.write_text(PRINTED.sub(lambda m: m["command"] + m["mark"] + printed(m["command"]), text))
