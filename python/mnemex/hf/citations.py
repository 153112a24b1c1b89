"""Where an answer was read from: retrieved entries, summed over layers, heads and queries, as stretches of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mnemex.errors import RowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from mnemex.hf.window import Ints
    from mnemex.torch.joined import Trace

GAP = 3
"""Tokens in a row that less was read from within one stretch, at most."""


class Source(NamedTuple):
    """A text that was read: its name, and the entry of each token, `[rows, T]`, -1 where there is none."""

    name: str | int
    ids: Ints


class Citation(NamedTuple):
    """A stretch that was read from: more than the mean of all that was read from in its text, token by token.

    Attributes
    ----------
    source
        Name of the text; None for entries of no known text.
    start, end
        Tokens `start` to `end` - 1 of the text; without a text, ids of entries.
    mass
        Its share of the attention of the forward pass, averaged over layers, heads and queries.
    """

    source: str | int | None
    start: int
    end: int
    mass: float


def cite(trace: Mapping[int, Trace], sources: Sequence[Source], *, n: int, row: int) -> list[Citation]:
    """List the `n` heaviest stretches of one row, heaviest first."""
    ids, mass = _mass_by_entry(trace.values(), row)
    found: list[Citation] = []
    known = np.zeros(len(ids), np.bool_)
    for source in sources:
        entries = source.ids[row if len(source.ids) > 1 else 0]
        tokens = (entries >= 0).nonzero()[0]
        _, in_ids, in_tokens = np.intersect1d(ids, entries[tokens], assume_unique=True, return_indices=True)
        known[in_ids] = True
        found += _stretches(source.name, tokens[in_tokens], mass[in_ids])
    found += _stretches(None, ids[~known], mass[~known])
    return sorted(found, key=lambda citation: -citation.mass)[:n]


def _mass_by_entry(layers: Iterable[Trace], row: int) -> tuple[Ints, NDArray[np.float64]]:
    """Give the entries that were read, ascending, and the mass of each."""
    layers = list(layers)
    if not layers:
        return np.zeros(0, np.int64), np.zeros(0)
    batch = len(layers[0].ids)
    if row >= batch:
        raise RowError(f"row={row}: the last forward pass had {batch} rows, numbered from 0")
    ids = np.concatenate([layer.ids[row].ravel() for layer in layers])
    weights = np.concatenate(
        [(layer.mass[row] * layer.share[row][..., None] / layer.share[row].size).ravel() for layer in layers]
    )
    read = ids >= 0
    entries, cell = np.unique(ids[read], return_inverse=True)
    mass = np.zeros(len(entries))
    np.add.at(mass, cell, weights[read] / len(layers))
    return entries, mass


def _stretches(name: str | int | None, places: Ints, mass: NDArray[np.float64]) -> list[Citation]:
    """Join the places, ascending, that were read from more than others of the text and lie close together.

    Many heads read a little of everything; what is below the mean would join a whole text.
    """
    if not len(places):
        return []
    heavy = places[mass >= mass.mean() * (1 - 1e-9)]
    found = []
    for part in np.split(heavy, (np.diff(heavy) > GAP + 1).nonzero()[0] + 1):
        start, end = int(part[0]), int(part[-1]) + 1
        found.append(Citation(name, start, end, float(mass[(places >= start) & (places < end)].sum())))
    return found
