"""Retrieved entries become shares by layer and head, and ages; and these become a table and a histogram."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the demo needs transformers")

from demo_parts import trace
from mnemex.demo import heads, histogram
from mnemex.demo.spread import Spread

WINDOW, SINKS, N = 8, 2, 200


def collected(*, skip: int, chunk: int, seed: int = 0) -> tuple[Spread, np.ndarray]:
    """Read as the demo does, and count by plain loops: ages, mass, mass if spread evenly, for each measured token."""
    rng = np.random.default_rng(seed)
    spread, rows = Spread(N, window=WINDOW, sinks=SINKS, skip=skip), []
    for start in range(0, N, chunk):
        n_tokens, n_entries = min(chunk, N - start), max(0, start - (WINDOW - 1) - SINKS)
        if not n_entries:
            spread.add(n_tokens, {})
            continue
        ids = np.stack([rng.permutation(max(n_entries, 3))[:3] for _ in range(2 * n_tokens)]).reshape(1, 2, n_tokens, 3)
        ids[ids >= n_entries] = -1
        share = rng.uniform(0.0, 0.5, (1, 2, n_tokens))
        spread.add(n_tokens, {3: trace(ids, share), 7: trace(ids, np.zeros_like(share))})
        for t in range(n_tokens):
            for h in range(2):
                found = [i for i in ids[0, h, t] if i >= 0]
                for i in found if start + t >= skip else []:
                    mass = share[0, h, t] / len(found) / 4
                    evenly = [start + t - (entry + SINKS) for entry in range(n_entries)]
                    rows.append((start + t - (i + SINKS), mass, evenly))
    return spread, rows


@pytest.mark.parametrize(("skip", "chunk"), [(0, 4), (50, 7), (197, 64), (90, 1)])
def test_ages_are_those_of_plain_loops(skip, chunk):
    spread, rows = collected(skip=skip, chunk=chunk)
    ages = spread.ages()
    read, offered = np.zeros(ages.edges[-1]), np.zeros(ages.edges[-1])
    for age, mass, evenly in rows:
        read[age] += mass
        np.add.at(offered, evenly, mass / len(evenly))
    assert not read[:WINDOW].any()
    for got, want in ((ages.read, read), (ages.offered, offered)):
        bins = np.add.reduceat(want, ages.edges[:-1])
        np.testing.assert_allclose(got, bins / bins.sum(), rtol=1e-5, atol=1e-9)


def test_heads_have_their_mean_share_over_the_measured_tokens():
    spread = Spread(6, window=1, sinks=0, skip=3)
    share = np.array([[[9.0, 9.0, 9.0, 0.1, 0.2, 0.6], [9.0, 9.0, 9.0, 0.4, 0.4, 0.4]]])
    for part in (slice(0, 2), slice(2, 5), slice(5, 6)):
        ids = np.zeros((1, 2, part.stop - part.start, 1), np.int64)
        spread.add(part.stop - part.start, {4: trace(ids, share[..., part])})
    assert list(spread.by_layer) == [4]
    np.testing.assert_allclose(spread.by_layer[4], [0.3, 0.4], rtol=1e-6)


def test_half_of_the_shares_lie_below_the_median():
    ages = Spread(64, window=4, sinks=0, skip=0).ages()
    assert ages.median(np.zeros_like(ages.read)) == 0
    even = np.diff(ages.edges) / np.diff(ages.edges).sum()
    assert ages.median(even) == pytest.approx((ages.edges[0] + ages.edges[-1]) / 2)


def test_the_table_has_a_cell_for_each_layer_and_head_and_their_means():
    table = ElementTree.fromstring(heads.draw({0: np.array([0.1, 0.5]), 2: np.array([0.25])}))
    rows = [[cell.text for cell in row] for row in table.iter("tr")]
    assert rows[0][1:] == ["0", "2"]
    assert rows[1:] == [["0", "10", "25"], ["1", "50", None], ["mean", "30", "25"]]
    tints = [float(tint) for tint in re.findall(r"--share:([\d.]+)", ElementTree.tostring(table, "unicode"))]
    assert max(tints) == 1.0
    assert {cell.get("scope") for cell in table.iter("th")} == {"row", "col"}


@pytest.mark.parametrize("skip", [0, 199])
def test_bars_stand_on_the_axis_and_are_as_high_as_their_share(skip):
    ages = collected(skip=skip, chunk=8)[0].ages()
    svg = ElementTree.fromstring(histogram.draw(ages))
    bars = [{name: float(bar.get(name)) for name in ("x", "y", "width", "height")} for bar in svg.iter("rect")]
    assert len(bars) == len(ages.read)
    floor = histogram.HEIGHT - histogram.BOTTOM
    assert all(abs(bar["y"] + bar["height"] - floor) < 0.11 for bar in bars)
    assert all(histogram.LEFT <= bar["x"] <= histogram.WIDTH - histogram.RIGHT for bar in bars)
    assert all(bar["y"] >= histogram.TOP - 0.1 for bar in bars)
    heights = np.array([bar["height"] for bar in bars])
    np.testing.assert_allclose(heights / heights.max(), ages.read / ages.read.max(), atol=2e-3)


def test_a_memory_that_was_never_read_makes_an_empty_figure():
    ages = Spread(20, window=30, sinks=4, skip=0).ages()
    assert not ages.read.any()
    assert ElementTree.fromstring(histogram.draw(ages)) is not None
