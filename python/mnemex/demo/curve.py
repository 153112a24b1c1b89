"""Bits per byte against the number of entries read, drawn as SVG: the figure at the top of the report."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 720, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 26, 56
LEAST_GAP = 16
"""Pixels between two labels, below which they would run into each other."""


class Point(NamedTuple):
    """Entries read per query and head, the bits per byte they gave, and what to write under the axis."""

    k: int
    bits: float
    label: str


class Level(NamedTuple):
    """A horizontal line to compare with: its class in the style sheet, height, and caption."""

    kind: str
    bits: float
    label: str


def draw(points: list[Point], levels: list[Level]) -> str:
    """Return an SVG element with `k` on a logarithmic axis; the page's style sheet gives it its colours."""
    low, high, step = _span([*(p.bits for p in points), *(level.bits for level in levels)])
    first, last = math.log2(points[0].k) - 0.8, math.log2(points[-1].k) + 0.8

    def x(k: float) -> float:
        return LEFT + (math.log2(k) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(bits: float) -> float:
        return TOP + (high - bits) / (high - low) * (HEIGHT - TOP - BOTTOM)

    summary = "; ".join(f"{p.label}: {p.bits:.4f}" for p in points)
    parts = [
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Bits per byte against entries read. '
        f'{escape(summary)}">'
    ]
    decimals = max(2, -math.floor(math.log10(step)))
    for i in range(round((high - low) / step) + 1):
        bits = low + i * step
        parts.append(_line("grid", LEFT, y(bits), WIDTH - RIGHT, y(bits)))
        parts.append(_text("", LEFT - 9, y(bits) + 4, f"{bits:.{decimals}f}", anchor="end"))
    parts.append(_text("", LEFT - 9, TOP - 12, "bits per byte", anchor="start", shift=-LEFT + 9))
    parts.append(_line("axis", LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM))
    for point in points:
        parts.append(_line("axis", x(point.k), HEIGHT - BOTTOM, x(point.k), HEIGHT - BOTTOM + 5))
        parts.append(_text("", x(point.k), HEIGHT - BOTTOM + 20, point.label))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text("", middle, HEIGHT - 10, "k: entries that each query of each head reads (logarithmic)"))
    for level in levels:
        parts.append(_line(f"reference {level.kind}", LEFT, y(level.bits), WIDTH - RIGHT, y(level.bits)))
        below = level.bits == min(other.bits for other in levels)
        baseline = y(level.bits) + (17 if below else -7)
        parts.append(_text(level.kind, LEFT + 8, baseline, f"{level.label}  {level.bits:.4f}", anchor="start"))
    path = " L".join(f"{x(p.k):.1f} {y(p.bits):.1f}" for p in points)
    parts.append(f'<path class="memory" d="M{path}"/>')
    parts += [f'<circle cx="{x(p.k):.1f}" cy="{y(p.bits):.1f}" r="5.5"/>' for p in points]
    previous = -math.inf
    for point in points:
        if x(point.k) - previous > 3 * LEAST_GAP:
            parts.append(_text("value", x(point.k), y(point.bits) - 12, f"{point.bits:.4f}"))
            previous = x(point.k)
    return "\n".join([*parts, "</svg>"])


def _span(bits: list[float]) -> tuple[float, float, float]:
    """Return the lowest and highest tick, and the step between ticks, for four to eight of them."""
    room = max(max(bits) - min(bits), 1e-4)
    rough = room / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    low = math.floor((min(bits) - 0.12 * room) / step) * step
    return low, math.ceil((max(bits) + 0.08 * room) / step) * step, step


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(kind: str, x: float, y: float, content: str, *, anchor: str = "middle", shift: float = 0.0) -> str:
    return f'<text class="{kind}" x="{x + shift:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
