"""The report: one static HTML file, filled into the template beside this file by replacing `{{name}}`.

The page holds the text once, a span for each token; what a token retrieved is given as numbers of lines and tokens, so
passages are shown from the text itself. Everything that comes from outside is escaped where it enters the page.

A token carries what was retrieved to predict it, that is, by the query of the token before it: its loss, its memory
mass and its passages then speak of the same moment.
"""

from __future__ import annotations

import json
import math
import re
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mnemex.demo import figures, prose
from mnemex.demo.escaping import html, visible
from mnemex.demo.units import percent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mnemex.demo.findings import Reading, Report

N_TINTS = 16
N_EXAMPLES = 8
EXAMPLE_WEIGHT = 0.01
"""A token is an example only when its heaviest passage has this share of its attention."""


class Tint(NamedTuple):
    """Values by token, and between which of them the colour goes from none to full."""

    values: NDArray[np.float64]
    low: float
    high: float

    @property
    def levels(self) -> list[int]:
        """The level of each token, 0 to `N_TINTS`."""
        shares = np.clip((self.values - self.low) / (self.high - self.low), 0.0, 1.0)
        return np.ceil(shares * N_TINTS - 0.5).astype(int).tolist()


def render(report: Report) -> str:
    """Return the page."""
    reading = report.reading
    mass = _tint(_of_predicted(reading.passages.mass), unit=0.01, from_zero=False)
    gain = _tint(np.nan_to_num(reading.with_window - reading.with_memory) / math.log(2), unit=1.0, from_zero=True)
    fields = {
        "style": _beside("report.css"),
        "tints": _rules(),
        "text": _text(reading.text.pieces, mass.levels, gain.levels),
        "mass_low": percent(mass.low),
        "mass_top": f"{percent(mass.high)} of attention",
        "gain_top": f"{gain.high:.0f} bits",
        "data": _data(reading, mass, gain),
        "script": _beside("report.js"),
        **prose.sections(report),
        **figures.sections(report),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], _beside("report.html"))


def _beside(name: str) -> str:
    return resources.files("mnemex.demo").joinpath(name).read_text("utf-8")


def _of_predicted(of_query: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move what belongs to a query to the token that the query predicts."""
    return np.concatenate([[0.0], of_query[:-1]])


def _tint(values: NDArray[np.float64], *, unit: float, from_zero: bool) -> Tint:
    """Return a tint over nearly the whole range of the values that are not zero, in whole units."""
    some = values[values > 0]
    if not len(some):
        return Tint(values, 0.0, unit)
    low, high = np.quantile(some, [0.02, 0.995])
    low = 0.0 if from_zero else math.floor(low / unit) * unit
    return Tint(values, low, max(low + unit, math.ceil(high / unit) * unit))


def _rules() -> str:
    """Return the style rules of the levels of both tints."""
    colour = "rgb(var(--memory) / calc({:.4f} * var(--strength)))"
    return "\n".join(
        f"[data-tint={name}] .{name[0]}{i} {{ background: {colour.format(i / N_TINTS)}; }}"
        for name in ("mass", "gain")
        for i in range(1, N_TINTS + 1)
    )


def _text(pieces: list[str], mass: list[int], gain: list[int]) -> str:
    """Return one element for each line, with a span for each token in it.

    A token that runs over a line end has a span in each of its lines, the later ones of class `c`; class `n` ends a
    line, so that a token that is nothing but a line end can be pointed at, and class `w` is white space, which is
    tinted faintly.
    """
    lines: list[list[str]] = [[]]
    for piece, *levels in zip(pieces, mass, gain, strict=True):
        tint = " ".join(f"{name}{level}" for name, level in zip("mg", levels, strict=True) if level)
        parts = piece.split("\n")
        for i, part in enumerate(parts):
            ends = i < len(parts) - 1
            if part or ends or i == 0:
                kinds = ("c" if i else "", "n" if ends else "", "w" if part.isspace() else "", tint)
                classes = " ".join(filter(None, kinds))
                opening = f'<span class="{classes}">' if classes else "<span>"
                lines[-1].append(f"{opening}{html(part)}</span>")
            if ends:
                lines.append([])
    return "".join(f'<div class="l">{"".join(line)}</div>' for line in lines)


def _data(reading: Reading, mass: Tint, gain: Tint) -> str:
    """Return what the page's script needs, as JSON that cannot end the script element it stands in."""
    passages = [
        [],
        *([[p.line, round(1e4 * p.weight), p.peaks] for p in best] for best in reading.passages.by_token[:-1]),
    ]
    data = {
        "mass": _whole(1000 * mass.values),
        "mass_low": round(1000 * mass.low),
        "mass_top": round(1000 * mass.high),
        "gain": _whole(100 * gain.values),
        "gain_top": round(100 * gain.high),
        "memory": _whole(100 / math.log(2) * reading.with_memory),
        "window": _whole(100 / math.log(2) * reading.with_window),
        "passages": [[p for p in best if p[1]] for best in passages],
        # A newline inside a piece is no text of its spans.
        "tokens": {i: visible(piece) for i, piece in enumerate(reading.text.pieces) if "\n" in piece},
        "examples": _examples(reading, gain.values),
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _whole(values: NDArray[np.float64]) -> list[int | None]:
    return [None if math.isnan(value) else round(value) for value in values]


def _examples(reading: Reading, gain: NDArray[np.float64]) -> list[int]:
    """Return the tokens that won most through passages of their own, one of each spelling.

    The one with the heaviest passage comes first.
    """
    found: list[int] = []
    spellings: set[str] = set()
    for i in np.argsort(-gain, kind="stable"):
        best = reading.passages.by_token[i - 1] if i else []
        spelling = reading.text.pieces[i].strip()
        if gain[i] <= 0 or len(found) == N_EXAMPLES:
            break
        if len(spelling) > 1 and spelling not in spellings and best and best[0].weight >= EXAMPLE_WEIGHT:
            found.append(int(i))
            spellings.add(spelling)
    return sorted(found, key=lambda i: -reading.passages.by_token[i - 1][0].weight)
