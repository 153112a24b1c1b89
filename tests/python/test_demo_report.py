"""The report is one page that holds everything, says what was found, and cannot be broken by the text it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("transformers", reason="the demo needs transformers")

from demo_parts import HOSTILE, report_of
from mnemex.demo.escaping import visible
from mnemex.demo.report import render

if TYPE_CHECKING:
    from pathlib import Path

VOID = {"meta", "input", "circle", "line", "path"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page with")


class Page(HTMLParser):
    """Checks that every element is closed where it should be, and keeps lines, scripts and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.lines: list[str] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if ("class", "l") in attributes:
            self.lines.append("")
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not self.open:
            return
        if self.open[-1][0] == "script":
            self.scripts[-1] += data
        elif any(attributes.get("class") == "l" for _, attributes in self.open):
            self.lines[-1] += data
        else:
            self.words += data


@pytest.fixture(scope="module", params=[False, True], ids=["table", "other windows"])
def hostile(request) -> str:
    name, written = "<img src=x onerror=alert(3)>{{lead}}", "</script>\u202e\x07<b>"
    return render(report_of(HOSTILE, name=name, written=written, n_equal=3, other_windows=request.param))


def test_the_text_is_there_line_by_line(hostile):
    assert Page(hostile).lines == visible(HOSTILE).split("\n")


def test_hostile_text_adds_no_element(hostile):
    tame = Page(render(report_of("tame\n" * 200, n_equal=3)))
    assert set(Page(hostile).tags) == set(tame.tags)
    assert Page(hostile).tags.count("script") == 2


def test_nothing_unseen_is_left_in_the_page(hostile):
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u202a-\u202e\u2066-\u2069]", hostile)


def test_nothing_is_loaded_from_anywhere(hostile):
    page = Page(hostile)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in page.attributes}
    assert not re.search(r"url\(|@import|https?:|\bfetch\(|XMLHttpRequest|\bimport\b", hostile)
    assert "content=\"default-src 'none'" in hostile


def test_no_field_is_left_and_none_is_filled_twice(hostile):
    assert set(re.findall(r"\{\{\w+\}\}", hostile)) == {"{{lead}}"}, "only the one in the name of the text"


def test_the_data_is_whole(hostile):
    report = report_of(HOSTILE)
    data = json.loads(Page(hostile).scripts[0])
    n = len(report.reading.text.ids)
    assert {len(data[name]) for name in ("mass", "gain", "memory", "window", "passages")} == {n}
    assert data["memory"][0] is None
    n_lines = HOSTILE.count("\n") + 1
    for passages in data["passages"]:
        assert all(0 <= line < n_lines and all(0 <= peak < n for peak in peaks) for line, _, peaks in passages)
    assert any(data["passages"])


def test_a_token_carries_what_was_retrieved_to_predict_it():
    report = report_of("a line of text\n" * 40)
    data = json.loads(Page(render(report)).scripts[0])
    assert data["mass"][0] == 0
    assert data["mass"][1:] == [round(1000 * mass) for mass in report.reading.passages.mass[:-1]]
    # The query at 200 read token 160; what it predicts is token 201.
    assert data["passages"][201][0][2] == [160]


def test_the_numbers_of_the_table_are_on_the_page(hostile):
    words = Page(hostile).words.replace("\u202f", " ")
    for number in ("3.0000", "2.0000", "1.2500", "75 %", "100 %", "1.50", "11.8 MiB"):
        assert number in words, number


@pytest.mark.parametrize(("other_windows", "n_figures"), [(False, 4), (True, 5)])
def test_the_figures_are_numbered_and_say_in_words_what_they_show(other_windows, n_figures):
    page = Page(render(report_of(HOSTILE, other_windows=other_windows)))
    assert re.findall(r"Figure (\d)\.", page.words) == [str(i) for i in range(1, n_figures + 1)]
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert any("Half of it is younger than" in label for label in labels)
    charted = [label for label in labels if "window: tokens that stay local" in label]
    assert len(charted) == other_windows
    assert all("16: 1.2500" in label for label in charted)
    # A window of 8 with the memory does what 32 does without.
    assert ("a window of 8 does at least as well as one of 32 without it" in page.words) == other_windows
    assert ("against the window" in page.words) == other_windows


def test_a_text_on_which_the_window_loses_nothing_says_so():
    report = report_of("some text\n" * 20)
    equal = report.full._replace(bits_per_byte=report.baseline.bits_per_byte)
    changed = type(report)(**{**vars(report), "full": equal, "rows": [*report.rows[:-1], equal]})
    assert "the window loses nothing" in Page(render(changed)).words


@pytest.mark.parametrize(("n_equal", "says"), [(None, "all 11 tokens are the same"), (4, "the first 4 of 11 tokens")])
def test_a_difference_in_what_was_written_is_shown(n_equal, says):
    assert says in Page(render(report_of("text\n" * 50, n_equal=n_equal))).words


def test_a_large_text_stays_under_three_megabytes():
    content = "".join(f"    value_{i} = compute(value_{i - 1}, scale={i})\n" for i in range(180))
    report = report_of(content)
    assert len(report.reading.text.ids) > 7000
    assert len(render(report).encode()) < 3_000_000


PROBE = """<script>
const style = (node) => getComputedStyle(node);
const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
const over = ([r, g, b, a = 1], under) => [r, g, b].map((c, i) => a * c + (1 - a) * under[i]);
const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = (rgb) => rgb.reduce((sum, c, i) => sum + linear(c / 255) * [0.2126, 0.7152, 0.0722][i], 0);
const paper = numbers(style(document.body).backgroundColor);
const contrast = (node) => {
  const under = over(numbers(style(node).backgroundColor), paper);
  const [low, high] = [under, over(numbers(style(node).color), under)].map(light).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const clipped = [...document.querySelectorAll("svg text")].filter((text) => {
  const box = text.getBBox(), frame = text.ownerSVGElement.viewBox.baseVal;
  return box.x < -1 || box.y < 0 || box.x + box.width > frame.width + 1 || box.y + box.height > frame.height;
});
document.documentElement.dataset.probe = JSON.stringify({
  overflows: document.documentElement.scrollWidth > document.documentElement.clientWidth,
  contrast: Math.min(...[...document.querySelectorAll("p, figcaption, td, th, dt, dd")].map(contrast)),
  clipped: clipped.map((text) => text.textContent),
  dark: light(paper) < 0.5,
});
</script>"""
"""Leaves what a browser makes of the page in an attribute: contrast is the lowest of WCAG's ratios."""


def opened(folder: Path, page: str, *flags: str) -> str:
    """Open a page in a headless browser, and return what became of it; anything in the console is an error."""
    path = folder / "report.html"
    path.write_text(page, "utf-8")
    always = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    logs = ["--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *always, *logs, *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@needs_browser
@pytest.mark.parametrize("content", [HOSTILE, "plain text, line by line\n" * 60], ids=["hostile", "plain"])
def test_a_browser_shows_a_token_and_its_passages(tmp_path, content):
    page = opened(tmp_path, render(report_of(content)))
    assert "Retrieved to predict it" in page
    assert re.search(r'<span class="token">', page)
    assert re.search(r'class="[^"]*\bat\b', page)


@needs_browser
@pytest.mark.parametrize("other_windows", [False, True])
@pytest.mark.parametrize("width", [500, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_can_be_read_in_either_theme_and_on_a_small_screen(tmp_path, theme, width, other_windows):
    flags = [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={int(theme == 'light')}"]
    page = render(report_of("plain text, line by line\n" * 60, other_windows=other_windows))
    page = opened(tmp_path, page.replace("</body>", PROBE + "</body>"), *flags)
    probe = json.loads(unescape(re.search(r'data-probe="([^"]*)"', page)[1]))
    assert probe["dark"] == (theme == "dark")
    assert not probe["overflows"], "the page scrolls sideways"
    assert probe["contrast"] >= 4.5
    assert probe["clipped"] == []
