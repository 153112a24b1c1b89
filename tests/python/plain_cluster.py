"""Clusters and their samples as the definition says, token by token in numpy: what the tests hold banks against."""

from __future__ import annotations

import numpy as np

from plain_consolidate import total
from policy_streams import Entry, PlainLane


def lot(seed: int, *of: int) -> float:
    """SplitMix64 over the numbers in turn."""
    mask, state = 2**64 - 1, seed
    for x in of:
        z = ((state ^ x) + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        state = z ^ (z >> 31)
    return (state >> 11) / 2**53


def square_distance(x: np.ndarray, y: np.ndarray) -> np.float32:
    """Square a Euclidean distance, summed as canonical scores are."""
    difference = y.astype(np.float64) - x.astype(np.float64)
    return np.float32(total(difference * difference))


class ClusterLane(PlainLane):
    """A lane of representatives and samples of their clusters."""

    def place(self, tokens: dict, ids: range, version: int, capacity: int) -> dict[int, int]:
        landed = {}
        for id_, (key, value) in tokens.items():
            near = [(square_distance(e.key, key), i) for i, e in self.entries.items() if e.member is None]
            landed[id_] = id_
            if not near or float(min(near)[0]) > self.policy.delta**2:
                self.entries[id_] = Entry(key, value, version, version)
                continue
            founder = min(near)[1]
            cluster = self.entries[founder]
            cluster.count += 1
            cluster.updated = cluster.used = version
            # Algorithm R: of m members, the last is kept with probability t / m, in the place of any other.
            samples = sorted(i for i, e in self.entries.items() if e.member == founder)
            members, most = cluster.count - 1, self.policy.reservoir
            at = len(samples) if members <= most else int(lot(self.policy.seed, self.head, 1, id_) * members)
            if at >= most:
                landed[id_] = founder
                continue
            if at < len(samples):
                self.entries.pop(samples[at])
                landed = {i: founder if to == samples[at] else to for i, to in landed.items()}
            self.entries[id_] = Entry(key, value, version, version, count=0, member=founder)
        return landed

    def log_weight(self, id_: int) -> float:
        founder = self.entries[id_].member
        if founder not in self.entries:
            return 0.0
        members = self.entries[founder].count - 1
        return float(np.log(members / min(members, self.policy.reservoir)))
