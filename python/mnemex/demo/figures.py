"""The figures of the report and their captions: curves, heat map, histogram, from what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mnemex.demo import curve, heads, histogram
from mnemex.demo.curve import Level, Point, Series
from mnemex.demo.escaping import html
from mnemex.demo.units import count, percent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mnemex.demo.findings import Report, Windows


MOST = 0.8
"""Share of the attention to the memory that the layers named in the text hold at least."""


def sections(report: Report) -> dict[str, str]:
    """Return the figures with their captions as HTML, by their names in the template, and the number of the viewer."""
    by_layer = report.reading.spread.by_layer
    charts = [(_curve(report), _curve_caption(report))]
    if report.windows is not None:
        charts.append((_windows(report, report.windows), _windows_caption(report, report.windows)))
    viewer = len(charts) + 1
    by_head = heads.draw(by_layer) if by_layer else "<p>Nothing was read from the memory.</p>"
    by_age = histogram.draw(report.reading.spread.ages())
    return {
        "charts_class": "pair" if len(charts) > 1 else "measure",
        "charts": "\n\n".join(_figure(number, *chart) for number, chart in enumerate(charts, 1)),
        "viewer_number": str(viewer),
        "spread_intro": _spread_intro(by_layer),
        "heads": _figure(viewer + 1, by_head, _heads_caption(report, by_layer)),
        "ages": _figure(viewer + 2, by_age, _ages_caption(report), attributes=' class="narrow"'),
    }


def _figure(number: int, drawing: str, caption: str, *, attributes: str = "") -> str:
    """Return a figure that scrolls sideways where the page is too narrow for it."""
    name = f"Figure {number}"
    return (
        f'<figure{attributes}>\n<div class="scroll" tabindex="0" role="group" aria-label="{name}">\n{drawing}\n</div>\n'
        f"<figcaption><b>{name}.</b> {caption}</figcaption>\n</figure>"
    )


def _curve(report: Report) -> str:
    points = [
        Point(row.k, row.bits_per_byte, count(row.k))
        if row.k is not None
        else Point(report.n_entries, row.bits_per_byte, f"every ({count(report.n_entries)})")
        for row in report.rows
        if row.memory_bytes
    ]
    window = Level("window", report.baseline.bits_per_byte, f"{report.baseline.name}, no memory")
    full = Level("full", report.full.bits_per_byte, report.full.name)
    axis = "k: entries that each query of each head reads (logarithmic)"
    return curve.draw([Series("memory", "", sorted(points))], [window, full], axis=axis)


def _curve_caption(report: Report) -> str:
    return (
        f"Bits per byte of {html(report.reading.text.name)} from token {count(report.skip)} on, against the number "
        "of entries each query reads. Lower is better; the axis does not start at zero. Nothing was trained."
    )


def _windows(report: Report, windows: Windows) -> str:
    points = windows.points
    sinks = f" + {report.sinks} sinks" if report.sinks else ""
    memory = [Point(p.window, p.with_memory, count(p.window)) for p in points]
    alone = [Point(p.window, p.alone, count(p.window)) for p in points]
    return curve.draw(
        [Series("window", f"window{sinks}, no memory", alone), Series("memory", "", memory)],
        [Level("full", windows.full, report.full.name)],
        axis="window: tokens that stay local (logarithmic)",
    )


def _windows_caption(report: Report, windows: Windows) -> str:
    points, k = windows.points, report.reading.k
    caption = (
        f"The same against the window, on the first {count(windows.n_tokens)} tokens: alone, and with the best "
        f"{k} of a memory of all that left it (orange)."
    )
    pairs = [(b.window / a.window, a, b) for a in points for b in points if a.with_memory <= b.alone]
    ratio, small, large = max(pairs, key=lambda pair: pair[0], default=(0.0, points[0], points[0]))
    if ratio > 1:
        caption += (
            f" With the memory, a window of {count(small.window)} does at least as well as one of "
            f"{count(large.window)} without it."
        )
    return caption


def _spread_intro(by_layer: dict[int, NDArray[np.float64]]) -> str:
    words = "Nothing was trained: each head uses the memory as it would use its own past."
    means = np.sort([shares.mean() for shares in by_layer.values()])[::-1]
    if not means.sum():
        return words
    n_layers = 1 + int(np.searchsorted(np.cumsum(means), MOST * means.sum()))
    held = percent(float(means[:n_layers].sum() / means.sum()))
    return words + f" {n_layers} of {len(means)} layers hold {held} of all attention to the memory."


def _heads_caption(report: Report, by_layer: dict[int, NDArray[np.float64]]) -> str:
    caption = (
        f"Attention that goes to the memory, in percent, by layer and query head: the mean over the tokens from "
        f"{count(report.skip)} on, with the best {report.reading.k} entries."
    )
    if not by_layer:
        return caption
    layer = max(by_layer, key=lambda number: by_layer[number].max())
    head = int(np.argmax(by_layer[layer]))
    everything = np.concatenate(list(by_layer.values()))
    return caption + (
        f" Layer {layer}, head {head} sends most there, {percent(by_layer[layer][head])}; half of the heads send less "
        f"than {percent(float(np.median(everything)))}."
    )


def _ages_caption(report: Report) -> str:
    ages = report.reading.spread.ages()
    if not ages.read.any():
        return "Nothing was read from the memory."
    read, offered = (count(round(ages.median(shares))) for shares in (ages.read, ages.offered))
    return (
        "How old the entries are that this attention went to (bars), and how old they would be if it were spread "
        f"evenly over all there was (line). Half of it goes back less than {read} tokens; spread evenly, {offered}. "
        f"Nothing is younger than the window of {count(report.window)}."
    )
