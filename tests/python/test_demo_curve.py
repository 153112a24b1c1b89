"""The figure: every point and level inside the frame, ticks that span them, labels that are escaped."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

pytest.importorskip("transformers", reason="the demo needs transformers")

from mnemex.demo.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Level, Point, Series, draw

CASES = {
    "the demo's own": ([(8, 0.6378), (32, 0.636), (7677, 0.6322)], [0.6679, 0.6323]),
    "one point": ([(100, 1.0)], [2.0, 1.0]),
    "all alike": ([(1, 1.5), (2, 1.5)], [1.5, 1.5]),
    "worse than the window": ([(1, 9.0), (50, 3.0)], [2.0, 2.5]),
    "large": ([(1, 4000.0), (10**9, 12.0)], [5000.0, 11.0]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_points_and_levels_lie_inside_the_frame(case):
    points, (window, full) = case
    svg = ElementTree.fromstring(
        draw(
            [Series("memory", "", [Point(k, bits, str(k)) for k, bits in points])],
            [Level("window", window, "w"), Level("full", full, "f")],
            axis="k",
        )
    )
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle")]
    assert len(circles) == len(points)
    for x, y in circles:
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1
    assert [x for x, _ in circles] == sorted({x for x, _ in circles})
    levels = [float(line.get("y1")) for line in svg.iter("line") if "reference" in line.get("class")]
    assert all(TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1 for y in levels)
    grid = [line for line in svg.iter("line") if line.get("class") == "grid"]
    assert 3 <= len(grid) <= 9


def test_lower_loss_is_lower_on_the_page():
    points = [Point(1, 2.0, "1"), Point(2, 1.0, "2")]
    svg = draw([Series("memory", "", points)], [Level("window", 3.0, "w"), Level("full", 0.5, "f")], axis="k")
    high, low = (float(y) for y in re.findall(r'<circle[^>]*cy="([\d.]+)"', svg))
    assert high < low


def test_the_labels_of_two_series_that_meet_stand_on_either_side():
    upper, lower = (
        Series(kind, kind, [Point(1, 3.0, "1"), Point(2, end, "2")]) for kind, end in (("a", 2.01), ("b", 2))
    )
    svg = ElementTree.fromstring(draw([upper, lower], [Level("full", 1.0, "f")], axis="window"))
    dots = {dot.get("class"): float(dot.get("cy")) for dot in svg.iter("circle")}
    values = {text.get("class"): float(text.get("y")) for text in svg.iter("text") if "value" in text.get("class")}
    assert values["value a"] < dots["a"] < dots["b"] < values["value b"]


def test_labels_are_escaped():
    series = [Series("memory", "<one>", [Point(1, 2.0, "<1&>")])]
    svg = draw(series, [Level("window", 3.0, '"<w>'), Level("full", 1.0, "f")], axis="<k>")
    assert ElementTree.fromstring(svg) is not None
    assert not re.search("<1|<one|<k", svg)
