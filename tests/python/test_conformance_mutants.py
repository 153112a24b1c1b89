"""Banks and policies that break one rule each: the suite finds every one."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

import mnemex as mx
from mnemex.testing import check_policy

MERGING = {"write": mx.Consolidate(threshold=0.9), "evict": mx.OldestAge()}


def check_streams(**options):
    """Check with several seeds: streams of one may miss what only a certain order of steps shows."""
    for seed in range(10):
        check_policy(**options, seed=seed)


class Overfull(mx.Bank):
    """Shows one entry more than it may hold, once a lane is full."""

    @property
    def lengths(self):
        full = super().lengths
        return full + (full == self.capacity)


class LandsElsewhere(mx.Bank):
    """Says of evicted tokens that they are there."""

    def commit(self):
        receipt = super().commit()
        ids = [np.broadcast_to(x[:, None], y.shape) for x, y in zip(receipt.ids, receipt.landed, strict=True)]
        return dataclasses.replace(receipt, _landed=lambda: ids)


class LosesTokens(mx.Bank):
    """Says of merged tokens that they were dropped, so that counts grow by more than what landed."""

    def commit(self):
        receipt = super().commit()
        pairs = [(x[:, None], y) for x, y in zip(receipt.ids, receipt.landed, strict=True)]
        landed = [np.where(y == x, y, -1) for x, y in pairs]
        return dataclasses.replace(receipt, _landed=lambda: landed)


class ForgetfulCopy(mx.Bank):
    """Copies all but an entry."""

    def copy(self):
        copy = super().copy()
        copy.__class__ = type(self)
        copy.delete([next(iter(copy.search(np.zeros((copy.rows, copy.heads, 1, copy.key_dim), "f4"), 1).ids.flat))])
        return copy


class SharedCopy(mx.Bank):
    """Copies to itself."""

    def copy(self):
        return self


class LossyFile(mx.Bank):
    """Saves all but the oldest entry of the first row."""

    def save(self, path, **options):
        copy = mx.Bank.copy(self)
        copy.delete(self.find()[0][:1])
        copy.save(path, **options)


class ThawedSnapshot(mx.Bank):
    """Gives itself as a snapshot."""

    def snapshot(self):
        return self

    def copy(self):
        return mx.Snapshot(self._native.snapshot(), self).copy()


class WrongFork(mx.Bank):
    """Forks in the order of a concatenation."""

    def fork(self, repeats):
        self.reorder(list(range(self.rows)) * repeats)


class WrongReorder(mx.Bank):
    """Reorders backwards."""

    def reorder(self, index):
        super().reorder(list(index)[::-1])


class KeepsDeleted(mx.Bank):
    """Deletes in the first row alone."""

    def delete(self, ids=None, labels=None, rows=None):
        super().delete(ids, labels, [0])


class StaleRead(mx.Bank):
    """Answers attention with what was there before the last deletion."""

    stale = None

    def delete(self, ids=None, labels=None, rows=None):
        self.stale = self.snapshot()
        super().delete(ids, labels, rows)

    def commit(self):
        self.stale = None
        return super().commit()

    def attend(self, queries, k, **options):
        stale = self.stale
        return (
            super().attend(queries, k, **options)
            if stale is None or stale.rows != self.rows
            else stale.attend(queries, k, **options)
        )


class ShowsStaged(mx.Bank):
    """Commits what is staged."""

    def stage(self, *args, **options):
        ids = super().stage(*args, **options)
        super().commit()
        return ids


class CrossesRows(mx.Bank):
    """Ends an entry of another row when one is written."""

    def commit(self):
        receipt = super().commit()
        last = self.rows - 1
        live = self.find(rows=[last])[0]
        if len(receipt.ids) == 1 and len(receipt.ids[0]) == 1 and len(live):
            self.delete(live[:1], rows=[last])
        return receipt


@pytest.mark.parametrize(
    ("bank", "match", "options"),
    [
        (Overfull, "a reader saw 7 entries|holds 7 entries", {}),
        (LandsElsewhere, "which is not live", {}),
        (LosesTokens, "tokens landed there", MERGING),
        (ForgetfulCopy, "a copy is not what it was copied from", {}),
        (SharedCopy, "changed by itself|different entries", {}),
        (LossyFile, "came back from its file as another", {}),
        (ThawedSnapshot, "a snapshot changed", {}),
        (WrongFork, "rows are not copies", {"rows": 2}),
        (WrongReorder, "rows are not copies", {}),
        (KeepsDeleted, "ended, and are there", {}),
        (StaleRead, "attention is not|lse is off|weighs something", {}),
        (ShowsStaged, "not committed shows", {}),
        (CrossesRows, "nothing was written to row|is not live|changed by itself", {}),
    ],
)
def test_a_broken_bank_is_found(bank, match, options):
    with pytest.raises(AssertionError, match=match):
        check_streams(**options, bank=bank, examples=60, steps=30)


class Lots:
    """Draws lots that no seed decides."""

    def __init__(self):
        self.rng = np.random.default_rng()

    def plan(self, columns, staged, hits):
        return mx.Edits(kill=self.rng.random(len(columns)) < 0.5)


class Counts:
    """Remembers how often it was asked."""

    def __init__(self):
        self.asked = itertools.count()

    def plan(self, columns, staged, hits):
        return mx.Edits(append=[] if next(self.asked) % 3 == 0 else None)


class Greedy:
    """Makes no room."""

    def plan(self, columns, staged, hits):
        return mx.Edits()


class Crosses:
    """Merges every token into the first entry of all."""

    def plan(self, columns, staged, hits):
        n = len(staged) if len(columns) else 0
        return mx.Edits(merge=(np.zeros(n, np.int64), np.arange(n)))


class Spoils:
    """Rewrites with what is not finite."""

    def plan(self, columns, staged, hits):
        keys = columns.keys() / np.float32(0)
        return mx.Edits(rewrite=(np.arange(len(columns)), keys, columns.values()))


@pytest.mark.filterwarnings("ignore:.*encountered in divide:RuntimeWarning")
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"write": Lots()}, AssertionError, "banks that were told the same|the same steps"),
        ({"write": Counts()}, AssertionError, "banks that were told the same|the same steps"),
        ({"evict": Greedy()}, mx.CapacityError, "entries are left"),
        ({"write": Crosses()}, mx.ArgumentError, "nothing crosses lanes"),
        ({"write": Spoils()}, mx.NonFinite, "expected finite numbers"),
    ],
)
def test_a_broken_policy_is_found(options, error, match):
    with pytest.raises(error, match=match):
        check_streams(**options, examples=30)
