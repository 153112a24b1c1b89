"""Where attention to the memory goes: which layers and heads read it, and how old what they read is.

Both come from what is retrieved anyway in the pass that the report shows, summed over the measured tokens. An entry's
age is the number of tokens from it to the token that reads it. Beside the ages read stand those offered: what the
same attention would have reached, had it been spread evenly over all that was in the memory at the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mnemex.demo.passages import Trace

BINS_PER_DOUBLING = 4


class Ages(NamedTuple):
    """Shares of the memory's attention by age.

    Attributes
    ----------
    edges
        Ages in tokens, int64 `[n_bins + 1]`, ascending: bin i goes from edge i to before edge i + 1.
    read, offered
        Share of each bin in what was read, and in an even reading, float64 `[n_bins]`; each sums to 1, or to 0 where
        nothing was read.
    """

    edges: NDArray[np.int64]
    read: NDArray[np.float64]
    offered: NDArray[np.float64]

    def median(self, shares: NDArray[np.float64]) -> float:
        """Return the age that half of the shares lie below, spread evenly within each bin; 0 without any."""
        below = np.concatenate([[0.0], np.cumsum(shares)])
        return float(np.interp(below[-1] / 2, below, self.edges)) if below[-1] else 0.0


class Spread:
    """Collects which heads read the memory, and the ages they read.

    Parameters
    ----------
    n_tokens
        Tokens of the text.
    window, sinks
        Tokens that stay local: at the start of a forward pass the memory holds all before it but the first `sinks` and
        the last `window - 1`; entry `i` is token `i + sinks`.
    skip
        Tokens at the beginning that do not count.
    """

    def __init__(self, n_tokens: int, *, window: int, sinks: int, skip: int) -> None:
        self.n_tokens, self.window, self.sinks, self.skip = n_tokens, window, sinks, skip
        self._start = 0
        self._counted = 0
        self._by_layer: dict[int, NDArray[np.float64]] = {}
        self._read = np.zeros(n_tokens + 1)
        self._offered_steps = np.zeros(n_tokens + 2)

    def add(self, n_tokens: int, layers: Mapping[int, Trace]) -> None:
        """Take in the next forward pass, of `n_tokens` tokens in a batch of one; without layers, nothing was read."""
        start = self._start
        self._start += n_tokens
        counts = slice(min(n_tokens, max(0, self.skip - start)), n_tokens)
        positions = np.arange(start, start + n_tokens)[counts]
        self._counted += len(positions)
        mass = np.zeros(len(positions))
        for number, layer in layers.items():
            share = layer.share[0][:, counts].astype(np.float64)  # [Hq, T]
            self._by_layer[number] = self._by_layer.get(number, 0.0) + share.sum(1)
            ids = layer.ids[0][:, counts]  # [Hq, T, k]
            weights = layer.mass[0][:, counts] * share[..., None] / (len(layers) * len(share))
            ages = positions[:, None] - (ids + self.sinks)
            found = ids >= 0
            self._read += np.bincount(ages[found], weights[found], len(self._read))
            mass += np.where(found, weights, 0.0).sum((0, 2))
        n_entries = start - (self.window - 1) - self.sinks
        if n_entries > 0:
            oldest = positions - self.sinks
            np.add.at(self._offered_steps, oldest - n_entries + 1, mass / n_entries)
            np.add.at(self._offered_steps, oldest + 1, -mass / n_entries)

    @property
    def by_layer(self) -> dict[int, NDArray[np.float64]]:
        """Share of the memory in the attention of each query head `[Hq]`, by layer, mean over the measured tokens."""
        return {number: total / max(1, self._counted) for number, total in sorted(self._by_layer.items())}

    def ages(self) -> Ages:
        """Return the ages read and offered, in bins of which `BINS_PER_DOUBLING` double an age."""
        n_bins = BINS_PER_DOUBLING * max(1, int(np.ceil(np.log2(max(2.0, self.n_tokens / self.window)))))
        edges = np.unique(np.round(self.window * 2.0 ** (np.arange(n_bins + 1) / BINS_PER_DOUBLING)).astype(np.int64))
        both = (self._read, np.cumsum(self._offered_steps[:-1]))
        read, offered = (_shares(np.add.reduceat(np.pad(x, (0, edges[-1])), edges[:-1])) for x in both)
        return Ages(edges, read, offered)


def _shares(amounts: NDArray[np.float64]) -> NDArray[np.float64]:
    total = amounts.sum()
    return np.maximum(amounts, 0.0) / total if total > 0 else np.zeros_like(amounts)
