"""Every operation of a bank in random order, beside lists: a hypothesis state machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import mnemex as mx
from plain_bank import PlainBank

SEEDS = st.integers(0, 2**32 - 1)


class BankMachine(RuleBasedStateMachine):
    """Whole numbers, so that every codec holds them and sums are exact."""

    @initialize(
        rows=st.integers(1, 3),
        heads=st.integers(1, 2),
        capacity=st.sampled_from([None, 1, 5, 20]),
        metric=st.sampled_from(["dot", "cos", "l2"]),
        codec=st.sampled_from(["f32", "f16", "bf16"]),
    )
    def start(self, rows, heads, capacity, metric, codec):
        self.bank = mx.Bank(
            rows=rows, heads=heads, key_dim=5, value_dim=3, capacity=capacity, metric=metric, key_codec=codec
        )
        self.plain = PlainBank(rows, heads, metric, capacity)
        self.held: list[tuple[mx.Snapshot, PlainBank]] = []
        self.quiet = True

    @rule(seed=SEEDS, t=st.integers(0, 7))
    def stage(self, seed, t):
        rng = np.random.default_rng(seed)
        n = len(self.plain.rows)
        rows = rng.permutation(n)[: rng.integers(1, n + 1)]
        keys = rng.integers(-4, 5, (len(rows), self.bank.heads, t, 5)).astype(np.float32)
        values = rng.integers(-4, 5, (len(rows), self.bank.heads, t, 3)).astype(np.float32)
        mask, labels = rng.random((len(rows), t)) < 0.8, rng.integers(-5, 5, (len(rows), t))
        ids = self.bank.stage(keys, values, rows=rows, mask=mask, labels=labels)
        ids = ids.reshape(len(rows), t)
        for i, at in np.ndindex(len(rows), t):
            row = int(rows[i])
            want = self.plain.stage(row, keys[i, :, at], values[i, :, at], int(labels[i, at])) if mask[i, at] else -1
            assert ids[i, at] == want
        self.quiet = False

    @rule()
    def commit(self):
        self.bank.commit()
        self.plain.commit()
        self.quiet = True

    @rule()
    def rollback(self):
        self.bank.rollback()
        self.plain.staged = []
        self.quiet = True

    @rule(seed=SEEDS)
    def delete(self, seed):
        rng = np.random.default_rng(seed)
        row, ids = int(rng.integers(len(self.plain.rows))), rng.integers(0, 60, 4)
        self.bank.delete(ids, rows=[row])
        self.plain.keep(row, lambda i: i not in ids)

    @precondition(lambda self: self.quiet)
    @rule(end=st.integers(0, 60))
    def truncate(self, end):
        self.bank.truncate(end)
        for row in range(len(self.plain.rows)):
            self.plain.keep(row, lambda i: i < end)

    @precondition(lambda self: self.quiet)
    @rule(row=st.integers(0, 2))
    def reset(self, row):
        row %= len(self.plain.rows)
        self.bank.reset(rows=[row])
        self.plain.keep(row, lambda _: False)

    @precondition(lambda self: self.quiet)
    @rule(seed=SEEDS, n=st.integers(1, 5))
    def reorder(self, seed, n):
        index = np.random.default_rng(seed).integers(0, len(self.plain.rows), n)
        self.bank.reorder(index)
        self.plain.reorder(index)

    @precondition(lambda self: self.quiet and len(self.plain.rows) < 4)
    @rule()
    def fork(self):
        self.plain.reorder(np.repeat(np.arange(len(self.plain.rows)), 2))
        self.bank.fork(2)

    @precondition(lambda self: self.quiet)
    @rule(saved=st.booleans())
    def go_on_with_a_copy(self, saved):
        if saved:
            with tempfile.TemporaryDirectory() as folder:
                self.bank.save(Path(folder) / "bank")
                self.bank = mx.open(Path(folder) / "bank")
        else:
            self.bank = self.bank.copy()

    @rule()
    def snapshot(self):
        frozen = self.plain.copy()
        frozen.staged = []
        self.held = [*self.held[-1:], (self.bank.snapshot(), frozen)]

    @rule(seed=SEEDS, k=st.integers(1, 9))
    def read(self, seed, k):
        self.plain.check(self.bank, seed, k)
        for snapshot, frozen in self.held:
            frozen.check(snapshot, seed, k)


TestABankAgreesWithLists = BankMachine.TestCase
TestABankAgreesWithLists.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
