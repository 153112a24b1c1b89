"""Two published rules as policies in Python: who goes, and what is merged. A new paper is about as long.

Run it for a short stream: python examples/policies.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import mnemex as mx


@dataclass(frozen=True)
class LeastRecent:
    """Entries end that were written, merged into or used least recently; the first few of a lane stay for ever.

    Attention sinks (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453) with an LRU behind them, where the paper has a
    window.
    """

    sinks: int = 0
    wants_use = True

    def plan(self, columns: mx.Columns, staged: mx.Staged, hits: mx.Touched) -> mx.Edits:  # noqa: ARG002
        over = columns.lengths + staged.lengths - columns.capacity
        worth = columns.last_touch.copy()
        first = columns.starts[:-1, None] + np.arange(self.sinks)
        worth[first[first < columns.starts[1:, None]]] = np.iinfo(np.int64).max
        free = columns.lengths - np.minimum(columns.lengths, self.sinks)
        return mx.Edits(kill=columns.least(worth, np.minimum(over, free)))


@dataclass(frozen=True)
class NearestMean:
    """What is near enough to an entry becomes part of its mean, as in CAMELoT (He et al. 2024, arXiv 2402.13449)."""

    threshold: float

    def plan(self, columns: mx.Columns, staged: mx.Staged, hits: mx.Touched) -> mx.Edits:  # noqa: ARG002
        keys, new = unit(columns.keys()), unit(staged.keys())
        nearest, score = np.zeros(len(staged), np.int64), np.full(len(staged), -np.inf)
        for lane in np.flatnonzero(columns.lengths):
            mine = slice(*columns.starts[lane : lane + 2])
            theirs = slice(*staged.starts[lane : lane + 2])
            scores = new[theirs] @ keys[mine].T
            nearest[theirs], score[theirs] = mine.start + scores.argmax(1), scores.max(1)
        near = np.flatnonzero(score >= self.threshold)
        return mx.Edits(merge=(nearest[near], near))


def unit(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((2, 1, 4, 1000, 8), np.float32)
    merging = mx.Bank(heads=4, key_dim=8, value_dim=8, capacity=100, write=NearestMean(0.8), evict=mx.OldestAge())
    recent = mx.Bank(heads=4, key_dim=8, value_dim=8, capacity=100, evict=LeastRecent(sinks=4))
    for bank in (merging, recent):
        for start in range(0, 1000, 50):
            bank.write(keys[:, :, start : start + 50], values[:, :, start : start + 50])
        print(bank)
