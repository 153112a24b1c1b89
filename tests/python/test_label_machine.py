"""Labels as keys, touches, partial rollbacks and receipts in random order, beside dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mnemex as mx

SEEDS = st.integers(0, 2**32 - 1)
HEADS = 2


class Row:
    """Label and touches by live id; staged ids with label and what they replace."""

    def __init__(self) -> None:
        self.labels: dict[int, int] = {}
        self.used: dict[int, list[float]] = {}
        self.next_id = 0
        self.staged: list[tuple[int, int, list[int]]] = []
        self.touched: list[tuple[int, float]] = []

    def new_id(self) -> int:
        return self.staged[-1][0] + 1 if self.staged else self.next_id

    def having(self, label: int) -> list[int]:
        gone = {i for _, _, replaced in self.staged for i in replaced}
        known = [*self.labels.items(), *((i, x) for i, x, _ in self.staged)]
        return [i for i, x in known if x == label != -1 and i not in gone]

    def forget(self, ids) -> None:
        for i in ids:
            self.labels.pop(i, None)
            self.used.pop(i, None)

    def commit(self, capacity: int | None) -> dict[int, int]:
        for i, weight in self.touched:
            if i in self.labels:
                hits, mass = self.used.get(i, [0, 0.0])
                self.used[i] = [hits + 1, mass + weight]
        before = [i for i, _, _ in self.staged]
        self.next_id = self.new_id()
        for i, label, replaced in self.staged:
            self.labels[i] = label
            self.forget(replaced)
        if capacity is not None:
            self.forget(sorted(self.labels)[:-capacity])
        self.staged, self.touched = [], []
        return {i: i if i in self.labels else -1 for i in before}


class LabelMachine(RuleBasedStateMachine):
    @initialize(rows=st.integers(1, 3), capacity=st.sampled_from([None, 4, 12]))
    def start(self, rows, capacity):
        self.bank = mx.Bank(rows=rows, heads=HEADS, key_dim=3, capacity=capacity)
        self.rows = [Row() for _ in range(rows)]
        self.calls: list[tuple[list[int], np.ndarray]] = []

    @rule(seed=SEEDS, t=st.integers(0, 6), how=st.sampled_from([None, "raise", "skip", "replace"]))
    def stage(self, seed, t, how):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(self.rows))[: rng.integers(1, len(self.rows) + 1)].tolist()
        labels, mask = rng.integers(-1, 6, (len(rows), t)), rng.random((len(rows), t)) < 0.8
        keys = rng.integers(-4, 5, (len(rows), HEADS, t, 3)).astype(np.float32)
        want, staged = np.full((len(rows), t), -1), [list(row.staged) for row in self.rows]
        refused = None
        for i, at in np.argwhere(mask):
            row, label = self.rows[rows[i]], int(labels[i, at])
            known = row.having(label) if how else []
            if known and how == "raise":
                refused = refused or (label, rows[i])
            if not (known and how == "skip"):
                want[i, at] = row.new_id()
                row.staged.append((int(want[i, at]), label, known if how == "replace" else []))

        def call():
            return self.bank.stage(keys, rows=rows, labels=labels, mask=mask, on_duplicate=how)

        if refused:
            with pytest.raises(mx.ArgumentError, match=rf"row {refused[1]} hold label {refused[0]} "):
                call()
            for row, before in zip(self.rows, staged, strict=True):
                row.staged = before
        else:
            np.testing.assert_array_equal(call(), want)
            self.calls.append((rows, want))

    @rule(seed=SEEDS, k=st.integers(1, 5), with_mass=st.booleans())
    def touch(self, seed, k, with_mass):
        rng = np.random.default_rng(seed)
        hits = self.bank.search(rng.integers(-4, 5, (len(self.rows), 2 * HEADS, 2, 3)).astype(np.float32), k)
        mass = rng.integers(0, 9, hits.ids.shape).astype(np.float32) / 8
        self.bank.touch(hits, mass if with_mass else None)
        for r, row in enumerate(self.rows):
            found = zip(hits.ids[r].reshape(-1), mass[r].reshape(-1), strict=True)
            row.touched += [(int(i), float(m) if with_mass else 0.0) for i, m in found if i >= 0]

    @rule()
    def commit(self):
        receipt = self.bank.commit()
        where = [row.commit(self.bank.capacity) for row in self.rows]
        assert len(receipt.ids) == len(receipt.landed) == len(self.calls)
        for (rows, ids), told, landed in zip(self.calls, receipt.ids, receipt.landed, strict=True):
            np.testing.assert_array_equal(told, ids)
            assert landed.shape == (len(rows), HEADS, ids.shape[1])
            for i, at in np.ndindex(ids.shape):
                assert (landed[i, :, at] == where[rows[i]].get(int(ids[i, at]), -1)).all()
        self.calls = []

    @rule(seed=SEEDS, what=st.sampled_from(["all", "rows", "end"]))
    def rollback(self, seed, what):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(self.rows))[: rng.integers(1, len(self.rows) + 1)].tolist()
        ends = [max(0, row.new_id() - int(rng.integers(0, 6))) for row in self.rows]
        if what == "all":
            self.bank.rollback()
            rows, ends, self.calls = range(len(self.rows)), [0] * len(self.rows), []
        elif what == "rows":
            self.bank.rollback(rows=rows)
            ends = [0] * len(self.rows)
        elif rng.random() < 0.5:
            self.bank.rollback(end=ends)
            rows = range(len(self.rows))
        else:
            self.bank.rollback(rows, ends[rows[0]])
            ends = [ends[rows[0]]] * len(self.rows)
        left = []
        for named, ids in self.calls:
            dropped = np.array([[r in rows and i >= ends[r] for i in ids[at]] for at, r in enumerate(named)], bool)
            dropped = dropped.reshape(ids.shape) & (ids >= 0)
            if not dropped.any() or (ids[~dropped] >= 0).any():
                left.append((named, np.where(dropped, -1, ids)))
        self.calls = left
        for r in rows:
            self.rows[r].staged = [token for token in self.rows[r].staged if token[0] < ends[r]]
            if what != "end":
                self.rows[r].touched = []

    @rule(seed=SEEDS)
    def delete(self, seed):
        rng = np.random.default_rng(seed)
        r, ids, labels = int(rng.integers(len(self.rows))), rng.integers(0, 40, 1), rng.integers(-1, 6, 2)
        self.bank.delete(ids, labels, rows=[r])
        row = self.rows[r]
        # What is to be replaced is still there, and goes.
        gone = [i for i, x in row.labels.items() if i in ids or (x in labels and x != -1)]
        row.forget(gone)

    @precondition(lambda self: not self.calls and not any(row.touched for row in self.rows))
    @rule(seed=SEEDS, how=st.sampled_from(["truncate", "reorder", "copy"]))
    def change(self, seed, how):
        rng = np.random.default_rng(seed)
        if how == "truncate":
            end = int(rng.integers(0, 40))
            self.bank.truncate(end)
            for row in self.rows:
                row.forget([i for i in row.labels if i >= end])
        elif how == "copy":
            self.bank = self.bank.copy()
        elif len(self.rows) > 1:
            index = rng.permutation(len(self.rows))
            self.bank.reorder(index)
            self.rows = [self.rows[i] for i in index]

    @invariant()
    def agrees(self):
        if not hasattr(self, "rows"):
            return
        hits = self.bank.search(np.zeros((len(self.rows), HEADS, 1, 3), np.float32), 60)
        for r, row in enumerate(self.rows):
            for h in range(HEADS):
                ids, labels = hits.ids[r, h, 0], hits.labels[r, h, 0]
                assert dict(zip(ids[ids >= 0].tolist(), labels[ids >= 0].tolist(), strict=True)) == row.labels
        stats = self.bank.stats()
        used = [used for row in self.rows for used in row.used.values()]
        assert (stats.touches, stats.mass) == (sum(hits for hits, _ in used), sum(mass for _, mass in used))
        assert stats.entries == HEADS * sum(len(row.labels) for row in self.rows)
        assert stats.nbytes == self.bank.nbytes


TestLabelsAgreeWithDictionaries = LabelMachine.TestCase
TestLabelsAgreeWithDictionaries.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
