"""What a bank must agree with: numpy in float64, and lists. Knows nothing of the implementation."""

from __future__ import annotations

import copy

import numpy as np


def fixed_sum(terms: np.ndarray) -> np.ndarray:
    """Sum the last axis as documented: term j to accumulator j mod 8, then a fixed tree over the eight."""
    pad = -terms.shape[-1] % 8
    terms = np.concatenate([terms, np.zeros((*terms.shape[:-1], pad))], -1)
    a = np.zeros((*terms.shape[:-1], 8))
    for start in range(0, terms.shape[-1], 8):
        a = a + terms[..., start : start + 8]
    a0, a1, a2, a3, a4, a5, a6, a7 = np.moveaxis(a, -1, 0)
    return ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7))


def scores(keys: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    """Canonical scores `[t, n]` of keys `[n, d]` and queries `[t, d]`."""
    k, q = keys.astype(np.float64)[None], queries.astype(np.float64)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        s = -fixed_sum((q - k) ** 2) if metric == "l2" else fixed_sum(q * k)
        if metric == "cos":
            norms = np.sqrt(fixed_sum(k * k)) * np.sqrt(fixed_sum(q * q))
            s = np.where(norms > 0, s / np.where(norms > 0, norms, 1), 0)
        return s.astype(np.float32) + np.float32(0)


def best(ids: np.ndarray, s: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids `[t, k]` of the best: larger first, then the smaller id; padded with -inf and -1."""
    out = np.full((len(s), k), -np.inf, np.float32), np.full((len(s), k), -1, np.int64)
    for t, row in enumerate(s):
        order = np.lexsort((ids, -row.astype(np.float64)))
        order = order[~np.isnan(row[order])][:k]
        out[0][t, : len(order)], out[1][t, : len(order)] = row[order], ids[order]
    return out


def attention(logits: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Softmax attention of one query: output and log-sum-exp; 0 and -inf over nothing."""
    if not len(logits):
        return np.zeros(values.shape[-1]), -np.inf
    top = logits.max()
    weights = np.exp(logits - top)
    return weights @ values.astype(np.float64) / weights.sum(), top + np.log(weights.sum())


class PlainBank:
    """Rows of entries (id, keys `[heads, dk]`, values `[heads, dv]`, label)."""

    def __init__(self, rows: int, heads: int, metric: str, capacity: int | None) -> None:
        self.rows: list[list[tuple]] = [[] for _ in range(rows)]
        self.next_id = [0] * rows
        self.staged: list[tuple[int, tuple]] = []
        self.heads, self.metric, self.capacity = heads, metric, capacity

    def copy(self) -> PlainBank:
        return copy.deepcopy(self)

    def stage(self, row: int, keys: np.ndarray, values: np.ndarray, label: int) -> int:
        taken = sum(r == row for r, _ in self.staged)
        entry = (self.next_id[row] + taken, keys.copy(), values.copy(), label)
        self.staged.append((row, entry))
        return entry[0]

    def commit(self) -> None:
        for row, entry in self.staged:
            self.rows[row].append(entry)
            self.next_id[row] = entry[0] + 1
            if self.capacity is not None:
                del self.rows[row][: -self.capacity]
        self.staged = []

    def keep(self, row: int, wanted) -> None:
        self.rows[row] = [entry for entry in self.rows[row] if wanted(entry[0])]

    def reorder(self, index) -> None:
        self.rows = [list(self.rows[i]) for i in index]
        self.next_id = [self.next_id[i] for i in index]

    def check(self, bank, seed: int, k: int) -> None:
        """Every read of the bank agrees."""
        n = len(self.rows)
        assert np.asarray(bank.lengths).tolist() == [[len(row)] * self.heads for row in self.rows]
        rng = np.random.default_rng(seed)
        queries = rng.integers(-4, 5, (n, 2 * self.heads, 2, bank.key_dim)).astype(np.float32)
        found, dense = bank.search(queries, k), bank.attend(queries, None, scale=0.25)
        part = bank.attend(queries, k, scale=0.25, hits=True)
        assert part.hits.ids.tobytes() == bank.search(
            queries, max(1, part.hits.ids.shape[-1])
        ).ids.tobytes() or not len(bank)
        keys, values = bank.gather(found)
        for r, head in np.ndindex(n, 2 * self.heads):
            entries = self.rows[r]
            ids = np.array([entry[0] for entry in entries], np.int64)
            mine = [np.array([entry[i][head // 2] for entry in entries], np.float32) for i in (1, 2)]
            mine = [
                x.reshape(len(entries), -1) if len(entries) else np.zeros((0, d))
                for x, d in zip(mine, (bank.key_dim, bank.value_dim), strict=True)
            ]
            s = scores(mine[0], queries[r, head], self.metric)
            want = best(ids, s, k)
            np.testing.assert_array_equal(found.ids[r, head], want[1])
            np.testing.assert_array_equal(found.scores[r, head].view(np.int32), want[0].view(np.int32))
            place = {int(i): at for at, i in enumerate(ids)}
            for t in range(2):
                for j, i in enumerate(want[1][t]):
                    at = place.get(int(i))
                    assert found.labels[r, head, t, j] == (entries[at][3] if at is not None else -1)
                    if at is not None:
                        np.testing.assert_array_equal(keys[r, head, t, j], mine[0][at])
                        np.testing.assert_array_equal(values[r, head, t, j], mine[1][at])
                taken = [place[int(i)] for i in best(ids, s, max(k, 1))[1][t] if i >= 0]
                for got, picked in ((dense, slice(None)), (part, taken)):
                    out, lse = attention(s[t, picked].astype(np.float64) * 0.25, mine[1][picked])
                    np.testing.assert_allclose(got.out[r, head, t], out, atol=5e-5)
                    np.testing.assert_allclose(got.lse[r, head, t], lse, atol=2e-5, rtol=1e-5)
