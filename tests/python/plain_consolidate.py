"""Consolidation as its definition says, token by token in numpy: what the tests hold banks against."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np

import mnemex as mx


def total(products: np.ndarray) -> float:
    """Sum in eight accumulators, as canonical scores do."""
    a = [0.0] * 8
    for j, x in enumerate(products):
        a[j % 8] += float(x)
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))


def score(similarity: str, key: np.ndarray, token: np.ndarray) -> np.float32:
    """Score canonically."""
    x, q = key.astype(np.float64), token.astype(np.float64)
    s = total(x * q)
    if similarity == "cos":
        norms = np.sqrt(total(x * x)), np.sqrt(total(q * q))
        s = s / (norms[0] * norms[1]) if min(norms) > 0 else 0.0
    with np.errstate(over="ignore"):
        return np.float32(s)


@dataclass
class Entry:
    """One entry of a lane."""

    key: np.ndarray
    value: np.ndarray
    updated: int
    used: int
    count: int = 1

    def merge(self, policy: mx.Consolidate, tokens: list[tuple[np.ndarray, np.ndarray]], version: int) -> None:
        self.key = merged(policy, self.key, self.count, [key for key, _ in tokens])
        self.value = merged(policy, self.value, self.count, [value for _, value in tokens])
        self.count += len(tokens)
        self.updated = self.used = version


def merged(policy: mx.Consolidate, old: np.ndarray, count: int, new: list[np.ndarray]) -> np.ndarray:
    """Merge vectors into one that stands for `count`."""
    sums = old.astype(np.float64) * (count if policy.merge == "mean" else 0)
    for x in new:
        sums = sums + x.astype(np.float64)
    if policy.merge == "mean":
        return (sums / (count + len(new))).astype(np.float32)
    return ((1 - policy.rate) * old.astype(np.float64) + policy.rate * (sums / len(new))).astype(np.float32)


@dataclass
class Lane:
    """The entries of a lane by id, and the tokens that went with those that ended."""

    entries: dict[int, Entry] = field(default_factory=dict)
    gone: int = 0

    def nearest(self, policy: mx.Consolidate, key: np.ndarray) -> int | None:
        scores = [(-score(policy.similarity, entry.key, key), id_) for id_, entry in self.entries.items()]
        if not scores or -min(scores)[0] < policy.threshold:
            return None
        return min(scores)[1]

    def write(self, policy: mx.Consolidate, evict, capacity: int, tokens: dict, version: int) -> dict[int, int]:
        """Take tokens (key, value) by id; say which entry each ended in, -1 where that was evicted."""
        landed = {}
        if policy.conflicts == "batch_mean":
            landed = {id_: self.nearest(policy, key) for id_, (key, _) in tokens.items()}
            for to in {to for to in landed.values() if to is not None}:
                self.entries[to].merge(policy, [tokens[i] for i in tokens if landed[i] == to], version)
        for id_, (key, value) in tokens.items():
            if policy.conflicts == "sequential":
                landed[id_] = self.nearest(policy, key)
                if landed[id_] is not None:
                    self.entries[landed[id_]].merge(policy, [(key, value)], version)
            if landed[id_] is None:
                self.entries[id_] = Entry(key, value, version, version)
                landed[id_] = id_
        for id_ in self.victims(evict, len(self.entries) - capacity):
            self.end(id_)
        return {id_: to if to in self.entries else -1 for id_, to in landed.items()}

    def victims(self, evict, over: int) -> list[int]:
        ids = sorted(self.entries)
        worth = {mx.OldestAge: "updated", mx.Lru: "used"}.get(type(evict))
        free = ids[evict.sinks : len(ids) - evict.recent]
        free.sort(key=lambda id_: (getattr(self.entries[id_], worth) if worth else 0, id_))
        return free[: max(0, over)]

    def end(self, id_: int) -> None:
        self.gone += self.entries.pop(id_).count

    def copy(self) -> Lane:
        return copy.deepcopy(self)


def state_of(bank) -> list[list[dict[int, tuple]]]:
    """Read every lane of a bank or a snapshot: key, value and count by id."""
    queries = np.zeros((bank.rows, bank.heads, 1, bank.key_dim), np.float32)
    hits = bank.search(queries, max(1, int(bank.lengths.max())))
    keys, values, columns = bank.gather(hits, columns=["count"])
    ids, counts = hits.ids, columns["count"]
    return [
        [
            {
                int(ids[row, head, 0, i]): (
                    keys[row, head, 0, i],
                    values[row, head, 0, i],
                    int(counts[row, head, 0, i]),
                )
                for i in range(ids.shape[-1])
                if ids[row, head, 0, i] >= 0
            }
            for head in range(bank.heads)
        ]
        for row in range(bank.rows)
    ]


def check(bank, rows: list[list[Lane]]) -> None:
    """Hold a bank against the model, bit for bit."""
    for lanes, plain in zip(state_of(bank), rows, strict=True):
        for found, lane in zip(lanes, plain, strict=True):
            assert sorted(found) == sorted(lane.entries)
            for id_, (key, value, count) in found.items():
                entry = lane.entries[id_]
                assert count == entry.count
                assert key.tobytes() == entry.key.tobytes()
                assert value.tobytes() == entry.value.tobytes()
