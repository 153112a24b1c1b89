"""Bits per byte against what a model may look at, drawn as SVG: the charts at the top of the report."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

from mnemex.demo.svg import line, text

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 26, 56
LEAST_GAP = 16
"""Pixels between two labels, below which they would run into each other."""


class Point(NamedTuple):
    """Where on the axis, the bits per byte there, and what to write under the axis."""

    at: float
    bits: float
    label: str


class Series(NamedTuple):
    """Points joined by a line, from left to right; its class in the style sheet, and its caption, "" for none."""

    kind: str
    label: str
    points: list[Point]


class Level(NamedTuple):
    """A horizontal line to compare with: its class in the style sheet, height, and caption."""

    kind: str
    bits: float
    label: str


def draw(series: list[Series], levels: list[Level], *, axis: str) -> str:
    """Return an SVG element with a logarithmic axis of that name; the page's style sheet gives it its colours.

    The first series has every label of the axis. Where two series come close, the label of the upper one stands above
    and that of the lower one below.
    """
    marked = series[0].points
    points = [point for each in series for point in each.points]
    low, high, step = _span([*(p.bits for p in points), *(level.bits for level in levels)])
    first, last = math.log2(marked[0].at) - 0.8, math.log2(marked[-1].at) + 0.8

    def x(at: float) -> float:
        return LEFT + (math.log2(at) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(bits: float) -> float:
        return TOP + (high - bits) / (high - low) * (HEIGHT - TOP - BOTTOM)

    summary = "; ".join(
        f"{each.label or 'the curve'}: " + ", ".join(f"{p.label}: {p.bits:.4f}" for p in each.points) for each in series
    )
    summary += "".join(f"; {level.label}: {level.bits:.4f}" for level in levels)
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Bits per byte against {escape(axis)}. {escape(summary)}">'
    ]
    decimals = max(2, -math.floor(math.log10(step)))
    for i in range(round((high - low) / step) + 1):
        bits = low + i * step
        parts.append(line("grid", LEFT, y(bits), WIDTH - RIGHT, y(bits)))
        parts.append(text("", LEFT - 9, y(bits) + 4, f"{bits:.{decimals}f}", anchor="end"))
    parts.append(text("", 0, TOP - 12, "bits per byte", anchor="start"))
    parts.append(line("axis", LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM))
    for point in marked:
        parts.append(line("axis", x(point.at), HEIGHT - BOTTOM, x(point.at), HEIGHT - BOTTOM + 5))
        parts.append(text("", x(point.at), HEIGHT - BOTTOM + 20, point.label))
    parts.append(text("", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, axis))
    for level in levels:
        parts.append(line(f"reference {level.kind}", LEFT, y(level.bits), WIDTH - RIGHT, y(level.bits)))
        below = level.bits == min(other.bits for other in levels)
        baseline = y(level.bits) + (17 if below else -7)
        parts.append(text(level.kind, LEFT + 8, baseline, f"{level.label}  {level.bits:.4f}", anchor="start"))
    for each in series:
        path = " L".join(f"{x(p.at):.1f} {y(p.bits):.1f}" for p in each.points)
        parts.append(f'<path class="{each.kind}" d="M{path}"/>')
        parts += [f'<circle class="{each.kind}" cx="{x(p.at):.1f}" cy="{y(p.bits):.1f}" r="5"/>' for p in each.points]
        previous = -math.inf
        for point in each.points:
            if x(point.at) - previous > 3 * LEAST_GAP:
                near = [o for o in points if o.at == point.at and 0 < y(point.bits) - y(o.bits) < 2.2 * LEAST_GAP]
                shift = 20 if near else -11
                parts.append(text(f"value {each.kind}", x(point.at), y(point.bits) + shift, f"{point.bits:.4f}"))
                previous = x(point.at)
        if each.label:
            start, then = each.points[0], each.points[min(1, len(each.points) - 1)]
            slope = (y(then.bits) - y(start.bits)) / max(1.0, x(then.at) - x(start.at))
            along = x(start.at) + 30
            baseline = y(start.bits) + slope * (along - x(start.at)) - 9
            parts.append(text(each.kind, along, baseline, each.label, anchor="start"))
    return "\n".join([*parts, "</svg>"])


def _span(bits: list[float]) -> tuple[float, float, float]:
    """Return the lowest and highest tick, and the step between ticks, for four to eight of them."""
    room = max(max(bits) - min(bits), 1e-4)
    rough = room / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    low = math.floor((min(bits) - 0.12 * room) / step) * step
    return low, math.ceil((max(bits) + 0.08 * room) / step) * step, step
