"""Merging of neighbours as its definition says, pair by pair in numpy: what the tests hold banks against."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from plain_consolidate import score
from policy_streams import Entry, PlainLane


class AdjacentLane(PlainLane):
    """A lane in which neighbours become one."""

    def place(self, tokens: dict, ids: range, version: int, capacity: int) -> dict[int, int]:
        landed = {}
        for id_, (key, value) in tokens.items():
            self.entries[id_] = Entry(key, value, version, version)
            landed[id_] = id_
        segment = self.policy.segment
        if segment is None:
            self.shorten([i for i in self.entries if i in ids], self.policy.n, version, landed)
        else:
            for number in range(ids.start // segment, ids.stop // segment):
                these = range(number * segment, (number + 1) * segment)
                self.shorten([i for i in self.entries if i in these], self.policy.n, version, landed)
        if self.policy.beyond == "merge":
            self.shorten(list(self.entries), capacity, version, landed)
        return landed

    def shorten(self, ids: list[int], n: int, version: int, landed: dict[int, int]) -> None:
        """Merge the most similar neighbours until n are left, looking at every pair each time."""
        ids = sorted(ids)
        while len(ids) > n:
            keys = [self.entries[i].key for i in ids]
            scores = [score(self.policy.similarity, a, b) for a, b in pairwise(keys)]
            at = int(np.argmax(scores))
            older, younger = ids[at], ids.pop(at + 1)
            one, other = self.entries[older], self.entries.pop(younger)
            a, b = (one.count, other.count) if self.policy.merge == "mean" else (1, 1)
            one.key = mean(a, one.key, b, other.key)
            one.value = mean(a, one.value, b, other.value)
            one.count += other.count
            one.updated = one.used = version
            for id_, to in landed.items():
                landed[id_] = older if to == younger else to


def mean(a: int, x: np.ndarray, b: int, y: np.ndarray) -> np.ndarray:
    """Weigh two vectors, rounded once."""
    return ((a * x.astype(np.float64) + b * y.astype(np.float64)) / (a + b)).astype(np.float32)
