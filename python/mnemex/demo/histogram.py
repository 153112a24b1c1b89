"""The ages of what was retrieved, drawn as SVG: bars for what was read, steps for what an even reading would give."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mnemex.demo.svg import line, text
from mnemex.demo.units import count

if TYPE_CHECKING:
    from mnemex.demo.spread import Ages

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 26, 56
AXIS = "age: tokens from an entry to the token that reads it (logarithmic)"


def draw(ages: Ages) -> str:
    """Return an SVG element; the page's style sheet gives it its colours."""
    top = max(float(ages.read.max(initial=0.0)), float(ages.offered.max(initial=0.0)), 1e-3)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if top <= 5 * s)
    top = step * math.ceil(top / step)
    first, last = (math.log2(edge) for edge in (ages.edges[0], ages.edges[-1]))

    def x(age: float) -> float:
        return LEFT + (math.log2(age) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return TOP + (top - share) / top * (HEIGHT - TOP - BOTTOM)

    read, offered = (ages.median(shares) for shares in (ages.read, ages.offered))
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Share of the attention to the memory '
        f'by age. Half of it is younger than {count(round(read))} tokens; read evenly, {count(round(offered))}.">'
    ]
    for i in range(round(top / step) + 1):
        parts.append(line("grid", LEFT, y(i * step), WIDTH - RIGHT, y(i * step)))
        parts.append(text("", LEFT - 9, y(i * step) + 4, f"{100 * i * step:.0f} %", anchor="end"))
    parts.append(text("", 0, TOP - 12, "share of the attention to the memory", anchor="start"))
    steps = []
    for low, high, share, even in zip(ages.edges, ages.edges[1:], ages.read, ages.offered, strict=False):
        left, right = x(low), x(high)
        parts.append(
            f'<rect x="{left + 1:.1f}" y="{y(share):.1f}" width="{max(0.5, right - left - 2):.1f}" '
            f'height="{HEIGHT - BOTTOM - y(share):.1f}"><title>{count(int(low))} to {count(int(high) - 1)} tokens: '
            f"{100 * share:.1f} % read, {100 * even:.1f} % if read evenly</title></rect>"
        )
        steps.append(f"{left:.1f} {y(even):.1f} L{right:.1f} {y(even):.1f}")
    parts.append(f'<path class="full" d="M{" L".join(steps)}"/>')
    parts.append(text("full", WIDTH - RIGHT, y(float(ages.offered[-6:].max())) - 8, "if spread evenly", anchor="end"))
    parts.append(line("axis", LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM))
    age = int(ages.edges[0])
    while age <= ages.edges[-1]:
        parts.append(line("axis", x(age), HEIGHT - BOTTOM, x(age), HEIGHT - BOTTOM + 5))
        parts.append(text("", x(age), HEIGHT - BOTTOM + 20, count(age)))
        age *= 2
    parts.append(text("", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, AXIS))
    return "\n".join([*parts, "</svg>"])
