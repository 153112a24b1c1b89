"""The figure: every point and level inside the frame, ticks that span them, labels that are escaped."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

pytest.importorskip("transformers", reason="the demo needs transformers")

from mnemex.demo.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Level, Point, draw

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
        draw([Point(k, bits, str(k)) for k, bits in points], [Level("window", window, "w"), Level("full", full, "f")])
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
    svg = draw([Point(1, 2.0, "1"), Point(2, 1.0, "2")], [Level("window", 3.0, "w"), Level("full", 0.5, "f")])
    high, low = (float(y) for y in re.findall(r'<circle[^>]*cy="([\d.]+)"', svg))
    assert high < low


def test_labels_are_escaped():
    svg = draw([Point(1, 2.0, "<1&>")], [Level("window", 3.0, '"<w>'), Level("full", 1.0, "f")])
    assert ElementTree.fromstring(svg) is not None
    assert "<1" not in svg
