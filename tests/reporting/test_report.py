"""The report in a browser: everything drawn, nothing fetched, no word of the data run as code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orthotune.cli import main
from orthotune.training import fit
from training.tiny import config, write_digits

pytest.importorskip("plotly")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
#: Milliseconds: only a fault takes as long, also where many processes share a slow machine.
PATIENCE = 240_000

PLOTS = [
    *("curves", "size", "time", "grid", "heat", "seeds", "defect", "final-defect"),
    *("angles", "spectra", "movement"),
]
WIDE = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def report(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    groups = ["--groups.natural", "[cifar100,dtd]", "--groups.specialized", "[eurosat]"]
    options = ["--out", str(out), "--title", "A <b> & c", "--paper", "rlrr_vtab1k", *groups]
    assert main(["report", str(sweep), *options]) == 0
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS, timeout=PATIENCE)
        yield found
        found.close()


class Opened:
    """A page with the report, what its console said and what it asked the network for."""

    def __init__(self, browser: Any, report: Path, **kind: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(**kind)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

        def only_the_file(route: Any) -> None:
            url = route.request.url
            if url == report.as_uri():
                route.continue_()
            else:
                self.asked.append(url)
                route.abort()

        self.page.route("**/*", only_the_file)
        self.page.goto(report.as_uri())
        self.page.wait_for_selector("html[data-drawn=true]")

    def marks(self) -> dict[str, int]:
        """How many lines, points and heat maps each plot has."""
        return self.page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('.plot')].map(p => "
            "[p.id, p.querySelectorAll('.main-svg :is(.js-line, .point, .hm image)').length]))"
        )


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    found = Opened(browser, report, **WIDE, color_scheme="light")
    yield found
    found.context.close()


def test_everything_is_drawn_without_errors_and_without_network(opened: Opened) -> None:
    marks = opened.marks()
    assert set(marks) == {f"plot-{key}" for key in PLOTS}
    assert {key: count for key, count in marks.items() if not count} == {}
    assert opened.said == []
    assert opened.asked == []


def test_no_data_runs_as_code(opened: Opened) -> None:
    assert opened.page.evaluate("window.evil") is None
    assert opened.page.inner_text("h1") == "A <b> & c"
    assert "</script><script>window.evil" in opened.page.inner_text("#failed pre")


def test_every_choice_draws_something(opened: Opened) -> None:
    for box in opened.page.query_selector_all("select"):
        plot = f"plot-{box.get_attribute('data-panel')}"
        first = box.input_value()
        for value in box.evaluate("s => [...s.options].filter(o => !o.disabled).map(o => o.value)"):
            box.select_option(value)
            assert opened.marks()[plot] > 0, (plot, value)
        box.select_option(first)
    assert opened.said == []


def test_chips_hide_a_method_in_every_plot(opened: Opened) -> None:
    before = opened.marks()
    chip = opened.page.locator("#chips button", has_text="goft")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    after = opened.marks()
    assert all(after[f"plot-{key}"] < before[f"plot-{key}"] for key in ("curves", "size", "time", "grid", "seeds"))
    chip.click()
    assert opened.marks() == before


def test_the_table_sorts_and_shows_the_best(opened: Opened) -> None:
    def names() -> list[str]:
        rows = "#overview tbody tr[data-name]"
        return opened.page.eval_on_selector_all(rows, "rows => rows.map(row => row.dataset.name)")

    head = opened.page.locator("#overview thead tr:last-child th").nth(1).locator("button")
    assert names() == ["goft", "rlrr"]
    head.click()  # scores begin with the highest
    assert names() == ["rlrr", "goft"]
    head.click()
    assert names() == ["goft", "rlrr"]
    assert opened.page.locator("#overview tr[data-name=rlrr] strong").count() == 6  # 3 tasks, 2 groups, the mean
    assert opened.page.locator("#overview tr[data-name=goft] strong").count() == 0
    assert "Best: rlrr, 71.0 ± 1.4 % mean over 3 tasks." in opened.page.inner_text(".lead")


def test_the_theme_follows_the_system_and_the_button(browser: Any, report: Path) -> None:
    dark = Opened(browser, report, **WIDE, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert dark.page.evaluate(ground) == "rgb(19, 21, 25)"
    dark.page.click("#theme")
    assert dark.page.evaluate(ground) == "rgb(255, 255, 255)"
    assert all(dark.marks().values())
    assert dark.said == []
    dark.context.close()


def test_a_phone_does_not_scroll_sideways(browser: Any, report: Path) -> None:
    phone = Opened(browser, report, **PHONE)
    phone.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(phone.marks().values())
    assert phone.said == []
    phone.context.close()


def test_it_prints(opened: Opened) -> None:
    pdf = opened.page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") >= 2
    assert opened.said == []


def test_plain_runs_of_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_digits(tmp_path / "digits")
    for seed in (0, 1):
        fit(config(data, tmp_path / "runs" / str(seed), seed=seed, epochs=1), quiet=True)
    out = tmp_path / "report.html"
    arguments = ["report", str(tmp_path / "runs"), "--out", str(out)]
    assert main(arguments) == 0
    assert "Orthogonality at the end" in out.read_text()
    assert main(arguments) == 2
    assert "already exists" in capsys.readouterr().err


def test_only_analyses(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(sweep / "inspected"), "--out", str(out)]) == 0
    assert "Spectra" in out.read_text()


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
