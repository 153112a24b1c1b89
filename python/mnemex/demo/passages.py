"""Which passages of the text each token was read from: retrieved entries, summed over layers and heads, by line.

A hit weighs what it had in the output of its head: its share among the hits, times the share of the memory in the
head's softmax. Averaged over all layers and heads, the weights of a token add up to its memory mass.

Much of that mass rests: heads with nothing to look for settle on a few entries (a distant " the") whatever the token.
What a token itself looks for shows as the weight beyond that, so an entry counts only for what it has above
`RESTING` times its average over the `BLOCK` tokens around.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

BLOCK = 128
RESTING = 2.0

N_PASSAGES = 4
N_PEAKS = 3
LEAST_PEAK = 0.2
"""A token of a passage stands out with this share of the passage's weight."""


class Trace(Protocol):
    """What one layer retrieved in a forward pass.

    Ids of entries `[B, Hq, T, k]`, -1 where there were fewer; their weights among each other, of the same shape; and
    the share of the memory in the whole softmax `[B, Hq, T]`.
    """

    @property
    def ids(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def mass(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def share(self) -> NDArray[np.float32]: ...  # noqa: D102


class Passage(NamedTuple):
    """A line some token was read from: its weight beyond resting, and the tokens of it that stand out."""

    line: int
    weight: float
    peaks: tuple[int, ...]


class Passages:
    """Collects what a text's tokens retrieved.

    Parameters
    ----------
    lines
        The line each token begins in, int64 `[n]`, ascending.
    sinks
        Tokens at the beginning that never go to the memory: entry `i` is token `i + sinks`.

    Attributes
    ----------
    mass
        Share of the memory in each token's attention, float64 `[n]`.
    by_token
        The passages of each token, heaviest first.
    """

    def __init__(self, lines: NDArray[np.int64], *, sinks: int) -> None:
        self.sinks = sinks
        self.mass = np.zeros(len(lines))
        self.by_token: list[list[Passage]] = []
        self._lines, self._first_of_line = np.unique(lines, return_index=True)
        self._waiting: list[NDArray[np.float64]] = []

    def add(self, n_tokens: int, layers: Mapping[int, Trace]) -> None:
        """Take in the next forward pass, of `n_tokens` tokens in a batch of one; without layers, nothing was read."""
        weights = self._weights(n_tokens, list(layers.values()))
        start = len(self.by_token) + sum(map(len, self._waiting))
        self.mass[start : start + len(weights)] = weights.sum(1)
        self._waiting.append(weights)
        if sum(map(len, self._waiting)) >= BLOCK:
            self.finish()

    def finish(self) -> None:
        """Settle what the tokens that came in last were read from."""
        if not self._waiting:
            return
        weights = np.concatenate(self._waiting)
        self._waiting.clear()
        beyond = np.maximum(weights - RESTING * weights.mean(0), 0.0)
        by_line = np.add.reduceat(beyond, self._first_of_line, 1)
        self.by_token += [self._heaviest(*both) for both in zip(beyond, by_line, strict=True)]

    def _weights(self, n_tokens: int, layers: list[Trace]) -> NDArray[np.float64]:
        """Return the weight of every token of the text `[n_tokens, n]` for each token of the pass."""
        n = len(self.mass)
        if not layers:
            return np.zeros((n_tokens, n))
        first_cells = n * np.arange(n_tokens)[:, None]
        cells, weights = [], []
        for layer in layers:
            ids = layer.ids[0]
            found = ids >= 0
            of_layer = layer.mass[0] * layer.share[0][..., None] / (len(layers) * len(ids))
            cells.append((ids + self.sinks + first_cells)[found])
            weights.append(of_layer[found])
        # All layers at once: a sum for each would pass over the whole text as often.
        total = np.bincount(np.concatenate(cells), np.concatenate(weights), n_tokens * n).astype(np.float64, copy=False)
        return total.reshape(n_tokens, n)

    def _heaviest(self, beyond: NDArray[np.float64], by_line: NDArray[np.float64]) -> list[Passage]:
        passages = []
        for line in np.argsort(-by_line, kind="stable")[:N_PASSAGES]:
            if by_line[line] == 0:
                break
            first = self._first_of_line[line]
            inside = beyond[first : self._first_of_line[line + 1] if line + 1 < len(self._lines) else None]
            order = np.argsort(-inside, kind="stable")[:N_PEAKS]
            peaks = sorted(int(first + i) for i in order if inside[i] >= LEAST_PEAK * by_line[line])
            passages.append(Passage(int(self._lines[line]), float(by_line[line]), tuple(peaks)))
        return passages


def line_of_each(pieces: list[str]) -> NDArray[np.int64]:
    """Return the line, counted from 0, in which each piece of a text begins.

    Parameters
    ----------
    pieces
        Pieces that make up the text in order.
    """
    breaks = np.array([piece.count("\n") for piece in pieces], np.int64)
    return np.cumsum(breaks) - breaks
