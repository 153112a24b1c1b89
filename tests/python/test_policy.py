"""Policies in Python beside the native ones and beside a plain model, and what a plan may not do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnemex as mx
from examples.policies import LeastRecent, NearestMean
from mnemex.testing import state_of, tokens
from policy_parts import SHAPE, Plan


def stream(rng, banks, steps):
    """Do the same to several banks; give the receipts of each commit."""
    for _ in range(steps):
        rows = np.flatnonzero(rng.random(banks[0].rows) < 0.8)
        keys, values = tokens(rng, banks[0], len(rows), int(rng.integers(1, 9)))
        hits = banks[0].search(rng.standard_normal((banks[0].rows, banks[0].heads, 1, 3)).astype(np.float32), 2)
        for bank in banks:
            bank.touch(hits)
            bank.stage(keys, values, rows=rows)
        yield [bank.commit() for bank in banks]


def assert_alike(banks, receipts):
    for bank, receipt in zip(banks, receipts, strict=True):
        assert [x.tolist() for x in receipt.landed] == [x.tolist() for x in receipts[0].landed]
        assert state_of(bank) == state_of(banks[0])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), sinks=st.integers(0, 2), capacity=st.integers(10, 20))
def test_least_recent_is_lru(seed, sinks, capacity):
    common = SHAPE | {"capacity": capacity}
    native = mx.Bank(**common, evict=mx.Lru(sinks=sinks), write=mx.Consolidate(threshold=2.0))
    banks = [native, mx.Bank(**common, evict=LeastRecent(sinks)), mx.Bank(**common, write=LeastRecent(sinks))]
    for receipts in stream(np.random.default_rng(seed), banks, 8):
        assert_alike(banks, receipts)
        assert len({receipt.evicted for receipt in receipts}) == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), threshold=st.sampled_from([-1.5, 0.5, 0.9, 2.0]), capacity=st.integers(5, 20))
def test_nearest_mean_is_consolidation(seed, threshold, capacity):
    common = SHAPE | {"capacity": capacity, "evict": mx.OldestAge()}
    banks = [mx.Bank(**common, write=write) for write in (mx.Consolidate(threshold=threshold), NearestMean(threshold))]
    rng = np.random.default_rng(seed)
    for _ in range(8):
        # Keys without ties: equal scores of the canonical order are not those of a matrix product.
        keys = rng.standard_normal((2, 2, 5, 3)).astype(np.float32)
        values = rng.standard_normal((2, 2, 5, 2)).astype(np.float32)
        assert_alike(banks, [bank.write(keys, values) for bank in banks])


@dataclass
class Entry:
    key: np.ndarray
    value: np.ndarray
    count: int = 1


def mean(entry, others, name):
    total = entry.count * getattr(entry, name).astype(np.float64)
    for other in others:
        total = total + getattr(other, name).astype(np.float64)
    return (total / (entry.count + len(others))).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99999))
def test_a_random_plan_does_what_it_says(seed):
    rng = np.random.default_rng(seed)
    drawn = {}

    def answer(columns, staged, hits):
        n, m = len(columns), len(staged)
        fate = rng.integers(0, 3, m)  # 0: dropped, 1: appended, 2: merged where there is something
        append = fate == 1
        kill = rng.random(n) < 0.2
        into, moved = [], []
        for token in np.flatnonzero(fate == 2):
            mine = np.flatnonzero((columns.lane == staged.lane[token]) & ~kill)
            theirs = n + np.flatnonzero((staged.lane == staged.lane[token]) & append)
            choices = np.concatenate([mine, theirs])
            if len(choices):
                into.append(int(rng.choice(choices)))
                moved.append(int(token))
        live = np.concatenate([np.flatnonzero(~kill), n + np.flatnonzero(append)])
        rewrite = live[rng.random(len(live)) < 0.2]
        keys = rng.standard_normal((len(rewrite), 3)).astype(np.float32)
        values = rng.standard_normal((len(rewrite), 2)).astype(np.float32)
        drawn.update(append=append, kill=kill, into=into, moved=moved, rewrite=rewrite, keys=keys, values=values)
        drawn["lane"], drawn["id"] = np.append(columns.lane, staged.lane), np.append(columns.id, staged.id)
        drawn["n"] = n
        as_mask = rng.random() < 0.5
        return mx.Edits(
            append=append if as_mask else np.flatnonzero(append),
            kill=kill if as_mask else np.flatnonzero(kill),
            merge=(np.array(into, np.int64), np.array(moved, np.int32)),
            rewrite=(rewrite, keys, values),
        )

    bank = mx.Bank(**SHAPE, write=Plan(answer))
    lanes = [{} for _ in range(4)]
    for _ in range(6):
        keys, values = tokens(rng, bank, 2, 5)
        receipt = bank.write(keys, values)
        n, lane, ids = drawn["n"], drawn["lane"], drawn["id"]
        landed = np.full((4, 5), -1)
        arrived = {}
        for token in range(20):
            k, t = divmod(token, 5)
            assert (lane[n + token], ids[n + token]) == (k, receipt.ids[0][k // 2, t])
            arrived[token] = Entry(keys[k // 2, k % 2, t], values[k // 2, k % 2, t])
        for place in np.flatnonzero(drawn["kill"]):
            del lanes[lane[place]][ids[place]]
        for token in np.flatnonzero(drawn["append"]):
            lanes[token // 5][ids[n + token]] = arrived[token]
            landed[token // 5, token % 5] = ids[n + token]
        rows = dict(zip(drawn["rewrite"].tolist(), range(len(drawn["rewrite"])), strict=True))
        for place in sorted({*drawn["into"], *rows}):
            entry = lanes[lane[place]][ids[place]]
            joined = [t for p, t in zip(drawn["into"], drawn["moved"], strict=True) if p == place]
            others = [arrived[t] for t in joined]
            for token in joined:
                landed[token // 5, token % 5] = ids[place]
            new = mean(entry, others, "key"), mean(entry, others, "value")
            if place in rows:
                new = drawn["keys"][rows[place]], drawn["values"][rows[place]]
            lanes[lane[place]][ids[place]] = Entry(*new, entry.count + len(joined))
        assert receipt.landed[0].reshape(4, 5).tolist() == landed.tolist()
        found = [lane for row in state_of(bank) for lane in row]
        assert found == [{i: (e.key.tobytes(), e.value.tobytes(), e.count) for i, e in lane.items()} for lane in lanes]


def test_plan_is_asked_once_per_commit_and_sees_everything():
    policy = Plan()
    bank = mx.Bank(**SHAPE, capacity=8, write=policy, columns={"prior": "float32", "kind": "int64", "old": "bool"})
    keys, values = tokens(np.random.default_rng(0), bank, 2, 3)
    side = {"labels": [[1, 2, 3], [4, 5, 6]], "positions": [[9, 8, 7], [6, 5, 4]]}
    own = {"prior": np.full((2, 3), 0.5, np.float32), "kind": [[1, 2, 3], [4, 5, 6]], "old": np.ones((2, 3), bool)}
    bank.write(keys, values, columns=own, **side)
    assert policy.calls == 1
    hits = mx.Hits(np.zeros((1, 2, 1, 2), np.float32), np.array([[[[0, 2]], [[2, -1]]]]), np.array([1]))
    seen = {}

    def look(columns, staged, hits):
        for name in (
            "lane",
            "id",
            "label",
            "position",
            "count",
            "hits",
            "mass",
            "written",
            "last_update",
            "last_touch",
        ):
            seen[name] = getattr(columns, name).tolist()
        seen["prior"], seen["kind"], seen["old"] = (columns[name].tolist() for name in ("prior", "kind", "old"))
        seen["touched"] = hits.lane.tolist(), hits.id.tolist(), hits.times.tolist(), hits.mass.tolist()
        seen["staged"] = staged.lane.tolist(), staged.id.tolist(), staged.label.tolist(), staged["kind"].tolist()
        assert np.array_equal(columns.keys(), keys[1].reshape(-1, 3))
        assert np.array_equal(columns.values([5, 0]), values[1].reshape(-1, 2)[[5, 0]])
        assert np.array_equal(staged.keys([1]), keys[1, 1, :1])
        assert columns.lengths.tolist() == [3, 3]
        assert staged.lengths.tolist() == [1, 1]
        assert columns.place([2, 3], [1, 2]).tolist() == [1, 5]
        assert columns.capacity == 8
        assert columns.version == bank.version + 1
        with pytest.raises(mx.IdError, match="lane 2 has no entry 7"):
            columns.place(2, 7)
        with pytest.raises(ValueError, match="read-only"):
            columns.id[0] = 1
        return mx.Edits()

    policy.answer = look
    bank.touch(hits, np.array([[[[0.25, 0.75]], [[1.0, 0.0]]]], np.float32))
    bank.stage(keys[1:, :, :1], values[1:, :, :1], rows=[1], labels=[[7]], columns={"kind": [[9]]})
    bank.commit()
    assert policy.calls == 2
    now = bank.version
    assert seen["lane"] == [2, 2, 2, 3, 3, 3]
    assert seen["id"] == [0, 1, 2] * 2
    assert seen["label"] == [4, 5, 6] * 2
    assert seen["position"] == [6, 5, 4] * 2
    assert seen["count"] == [1] * 6
    assert seen["hits"] == [1, 0, 1, 0, 0, 1]
    assert seen["mass"] == [0.25, 0, 0.75, 0, 0, 1]
    assert seen["written"] == seen["last_update"] == [now - 1] * 6
    assert seen["last_touch"] == [now, now - 1, now, now - 1, now - 1, now]
    assert seen["prior"] == [0.5] * 6
    assert seen["kind"] == [4, 5, 6] * 2
    assert seen["old"] == [True] * 6
    assert seen["touched"] == ([2, 2, 3], [0, 2, 2], [1, 1, 1], [0.25, 0.75, 1])
    assert seen["staged"] == ([2, 3], [3, 3], [7, 7], [9, 9])
    # A commit of touches alone asks nobody.
    bank.touch(hits)
    bank.commit()
    assert policy.calls == 2


def test_what_is_replaced_is_not_shown():
    policy = Plan()
    bank = mx.Bank(**SHAPE, write=policy)
    keys, values = tokens(np.random.default_rng(0), bank, 2, 3)
    bank.write(keys, values, labels=[[1, 2, 3]] * 2)
    shown = {}

    def look(columns, staged, hits):
        shown["ids"], shown["tokens"] = columns.id.tolist(), staged.id.tolist()
        assert len(columns.keys()) == len(columns)
        assert np.array_equal(columns.keys()[:2], keys[0, 0, [0, 2]])
        return mx.Edits()

    policy.answer = look
    landed = bank.write(keys, values, labels=[[2, 8, 8]] * 2, on_duplicate="replace").landed[0]
    assert shown == {"ids": [0, 2] * 4, "tokens": [3, 5] * 4}
    assert landed.tolist() == [[[3, -1, 5]] * 2] * 2


def test_capacities_by_head_are_told_lane_by_lane():
    seen = []

    class Newest:
        name = "newest"

        def plan(self, columns, staged, hits):
            seen.append(np.asarray(columns.capacity).tolist())
            over = columns.lengths + staged.lengths - columns.capacity
            return mx.Edits(kill=columns.least(columns.id, over))

    bank = mx.Bank(rows=2, heads=2, key_dim=2, capacity=[2, 3], write=Newest())
    for n in (2, 2, 1):
        bank.write(np.ones((2, 2, n, 2), np.float32))
    assert bank.lengths.tolist() == [[2, 3], [2, 3]]
    assert seen == [[2, 3, 2, 3]] * 3
