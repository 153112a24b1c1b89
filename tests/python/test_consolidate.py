"""Consolidation beside a plain model: every lane, bit for bit, after every step; and what its definition promises."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnemex as mx
from plain_consolidate import Lane, check, score, state_of

HEADS, DIM, VALUE_DIM = 2, 5, 3


def policies():
    """List every kind of policy, over thresholds that merge much, some and nothing."""
    common = {
        "threshold": st.sampled_from([-2.0, 0.0, 0.5, 0.9, 0.999, 1.5]),
        "similarity": st.sampled_from(["cos", "dot"]),
        "conflicts": st.sampled_from(["batch_mean", "sequential"]),
    }
    ema = st.builds(mx.Consolidate, merge=st.just("ema"), rate=st.sampled_from([0.1, 0.5, 1.0]), **common)
    return st.one_of(st.builds(mx.Consolidate, **common), ema)


PINS = {"sinks": st.integers(0, 2), "recent": st.integers(0, 2)}
EVICTS = st.one_of(st.builds(mx.OldestAge, **PINS), st.builds(mx.Fifo, **PINS), st.builds(mx.Lru, **PINS))
STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 12)),
    st.tuples(st.just("write"), st.integers(1, 3)),
    st.tuples(st.just("write"), st.integers(20, 40)),
    st.tuples(st.just("touch"), st.integers(1, 20)),
    st.tuples(st.just("delete"), st.integers(5, 40)),
    st.tuples(st.just("truncate"), st.integers(0, 5)),
    st.tuples(st.sampled_from(["copy", "save", "fork", "reorder", "snapshot", "rollback", "reset"]), st.just(0)),
)


def draw(rng: np.random.Generator, rows: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw keys that crowd around a few centres, some of them equal, and values."""
    centres = np.random.default_rng(7).standard_normal((4, DIM))
    keys = centres[rng.integers(0, 4, (rows, HEADS, n))] + 0.1 * rng.integers(-2, 3, (rows, HEADS, n, DIM))
    keys[rng.random(keys.shape[:3]) < 0.1] = 0.0
    return keys.astype(np.float32), rng.standard_normal((rows, HEADS, n, VALUE_DIM), np.float32)


@settings(max_examples=250, deadline=None)
@given(
    policy=policies(),
    evict=EVICTS,
    metric=st.sampled_from(["dot", "cos", "l2"]),
    capacity=st.integers(5, 16),
    steps=st.lists(STEP, min_size=4, max_size=25),
    seed=st.integers(0, 99),
)
def test_a_bank_is_what_the_definition_says(policy, evict, metric, capacity, steps, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    bank = mx.Bank(
        rows=2,
        heads=HEADS,
        key_dim=DIM,
        value_dim=VALUE_DIM,
        capacity=capacity,
        metric=metric,
        write=policy,
        evict=evict,
    )
    rows, next_ids, held = [[Lane() for _ in range(HEADS)] for _ in range(2)], [0, 0], []
    for what, n in steps:
        if what == "write":
            keys, values = draw(rng, len(rows), n)
            parts = [slice(0, n // 2), slice(n // 2, n)] if n > 4 else [slice(0, n)]
            mask = rng.random((len(rows), n)) < 0.9
            for part in parts:
                bank.stage(keys[:, :, part], values[:, :, part], mask=mask[:, part])
            receipt = bank.commit()
            ids, landed = np.concatenate(receipt.ids, 1), np.concatenate(receipt.landed, 2)
            for row, lanes in enumerate(rows):
                assert (ids[row][mask[row]] == next_ids[row] + np.arange(mask[row].sum())).all()
                next_ids[row] += int(mask[row].sum())
                for head, lane in enumerate(lanes):
                    written = np.flatnonzero(mask[row])
                    tokens = {int(ids[row, t]): (keys[row, head, t], values[row, head, t]) for t in written}
                    ended = lane.write(policy, evict, capacity, tokens, receipt.version)
                    assert [int(landed[row, head, t]) for t in written] == list(ended.values())
                    assert (landed[row, head][~mask[row]] == -1).all()
        elif what == "touch":
            found = np.stack([rng.integers(0, max(1, end), (HEADS, 1, n)) for end in next_ids])
            bank.touch(mx.Hits(np.zeros(found.shape, np.float32), found, np.arange(len(rows))))
            version = bank.commit().version
            for lanes, ids in zip(rows, found, strict=True):
                for lane, touched in zip(lanes, ids, strict=True):
                    for id_ in set(touched.reshape(-1).tolist()) & set(lane.entries):
                        lane.entries[id_].used = version
        elif what == "delete":
            gone = [i for i in range(max(next_ids)) if rng.random() < n / 100]
            bank.delete(ids=gone)
            for lane in (lane for lanes in rows for lane in lanes):
                for id_ in set(gone) & set(lane.entries):
                    lane.end(id_)
        elif what == "truncate":
            bank.truncate([max(0, end - n) for end in next_ids])
            for lanes, end in zip(rows, next_ids, strict=True):
                for lane in lanes:
                    for id_ in [i for i in lane.entries if i >= end - n]:
                        lane.end(id_)
        elif what == "copy":
            bank = bank.copy()
        elif what == "save":
            folder = tmp_path_factory.mktemp("consolidate") / "bank"
            bank.save(folder)
            bank = mx.open(folder)
        elif what == "fork" and len(rows) < 4:
            bank.fork(2)
            rows = [[lane.copy() for lane in lanes] for lanes in rows for _ in range(2)]
            next_ids = [end for end in next_ids for _ in range(2)]
        elif what == "reorder":
            index = rng.integers(0, len(rows), 2)
            bank.reorder(index)
            rows = [[lane.copy() for lane in rows[at]] for at in index]
            next_ids = [next_ids[at] for at in index]
        elif what == "snapshot":
            held.append((bank.snapshot(), [[lane.copy() for lane in lanes] for lanes in rows]))
        elif what == "rollback":
            bank.stage(*draw(rng, len(rows), 3))
            bank.rollback()
        elif what == "reset":
            bank.reset([0])
            for lane in rows[0]:
                for id_ in list(lane.entries):
                    lane.end(id_)
        check(bank, rows)
        assert (bank.lengths <= capacity).all()
        for lanes, end in zip(rows, next_ids, strict=True):
            for lane in lanes:
                assert sum(entry.count for entry in lane.entries.values()) + lane.gone == end
    for snapshot, was in held:
        check(snapshot, was)


def filled(policy, keys, **how) -> mx.Bank:
    """Make a bank of one lane that was given the keys, a commit each."""
    bank = mx.Bank(key_dim=keys.shape[-1], value_dim="key", write=policy, **how)
    for key in keys:
        bank.write(key[None])
    return bank


@pytest.mark.parametrize("conflicts", ["batch_mean", "sequential"])
def test_above_one_it_appends_and_the_oldest_go(conflicts):
    rng = np.random.default_rng(0)
    one = mx.Bank(
        heads=HEADS,
        key_dim=DIM,
        capacity=20,
        write=mx.Consolidate(threshold=1.0001, conflicts=conflicts),
        evict=mx.OldestAge(),
    )
    other = mx.Bank(heads=HEADS, key_dim=DIM, capacity=20)
    queries = rng.standard_normal((1, HEADS, 3, DIM), np.float32)
    for n in (3, 17, 5, 40, 1):
        keys = rng.standard_normal((1, HEADS, n, DIM), np.float32)
        a, b = one.write(keys), other.write(keys)
        assert (a.landed[0] == b.landed[0]).all()
        assert a.evicted == b.evicted
        for x, y in zip(one.search(queries, 20), other.search(queries, 20), strict=True):
            assert (x == y).all()


def test_below_minus_one_it_keeps_the_running_mean():
    keys = np.random.default_rng(0).standard_normal((1000, DIM), np.float32)
    bank = filled(mx.Consolidate(threshold=-1.5), keys)
    stored, values, columns = bank.gather([0], columns=["count", "label"])
    assert len(bank) == 1
    assert columns["count"].tolist() == [1000]
    assert columns["label"].tolist() == [-1]
    np.testing.assert_allclose(stored[0], keys.mean(0, dtype=np.float64), atol=1e-6)
    assert (values == stored).all()
    together = mx.Bank(key_dim=DIM, write=mx.Consolidate(threshold=-1.5, conflicts="sequential"))
    receipt = together.write(keys)
    assert (receipt.landed[0] == 0).all()
    assert together.gather([0])[0].tobytes() == stored.tobytes()


def test_one_after_the_other_is_a_commit_each():
    rng = np.random.default_rng(1)
    policy = mx.Consolidate(threshold=0.8, conflicts="sequential", merge="ema", rate=0.3)
    keys = rng.standard_normal((300, 3), np.float32)
    bank = mx.Bank(key_dim=3, value_dim="key", write=policy)
    landed = bank.write(keys).landed[0].reshape(-1)
    other = mx.Bank(key_dim=3, value_dim="key", write=policy)
    assert landed.tolist() == [int(other.write(key[None]).landed[0].reshape(-1)[0]) for key in keys]
    one, two = state_of(bank)[0][0], state_of(other)[0][0]
    assert 1 < len(one) < 300
    assert {i: (key.tobytes(), n) for i, (key, _, n) in one.items()} == {
        i: (key.tobytes(), n) for i, (key, _, n) in two.items()
    }


def test_age_is_since_the_last_merge_and_reading_leaves_it():
    keys = np.eye(4, dtype=np.float32)
    bank = filled(mx.Consolidate(threshold=0.9), keys, capacity=4, evict=mx.OldestAge())
    bank.touch(mx.Hits(np.zeros((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 1), np.int64), np.array([0])))
    assert bank.write(2 * keys[:1]).landed[0].item() == 0
    receipt = bank.write(-keys[2:3])
    assert receipt.evicted == 1
    assert sorted(state_of(bank)[0][0]) == [0, 2, 3, 5], "1 was touched, 0 was merged into"
    # What the same commit merges into is fresh: 2 stays, 3 goes.
    receipt = bank.write(np.stack([3 * keys[2], -keys[3]]))
    assert receipt.landed[0].reshape(-1).tolist() == [2, 7]
    assert sorted(state_of(bank)[0][0]) == [0, 2, 5, 7]


def test_pinned_entries_stay_however_old():
    keys = np.eye(4, dtype=np.float32)
    bank = filled(mx.Consolidate(threshold=0.9), keys[:3], capacity=3, evict=mx.OldestAge(recent=2))
    for token in (keys[:1], keys[1:2], keys[3:]):
        bank.write(token)
    assert sorted(state_of(bank)[0][0]) == [1, 2, 5], "2 is the oldest, and one of the two newest"
    bank = filled(mx.Consolidate(threshold=0.9), keys[:3], capacity=3, evict=mx.OldestAge(sinks=1, recent=1))
    bank.write(keys[1:2])
    bank.write(keys[3:])
    assert sorted(state_of(bank)[0][0]) == [0, 1, 4]


def test_a_token_that_ends_with_its_entry_landed_nowhere():
    keys = np.eye(4, dtype=np.float32)
    bank = filled(mx.Consolidate(threshold=0.9), keys[:2], capacity=2, evict="fifo")
    receipt = bank.write(np.stack([keys[0], keys[2]]))
    assert receipt.landed[0].reshape(-1).tolist() == [-1, 3]
    assert receipt.evicted == 1


def test_replaced_entries_are_nobodys_nearest():
    keys = np.eye(3, dtype=np.float32)
    bank = mx.Bank(key_dim=3, write=mx.Consolidate(threshold=0.9))
    bank.write(keys, labels=[7, 8, 9])
    receipt = bank.write(keys[:1], labels=[7], on_duplicate="replace")
    assert receipt.landed[0].reshape(-1).tolist() == [3]
    assert bank.find(labels=[7])[0].tolist() == [3]
    bank.write(keys[1:2], labels=[5])
    assert bank.find(labels=[5])[0].tolist() == [], "the label of a merged token finds nothing"
    assert bank.find(labels=[8])[0].tolist() == [1]


BATCH_SIZES = [
    (3000, 64, 1.0), (1300, 2048, 1.0), (300, 8, 1e30), (300, 8, 1e-25), (400, 16, 1e18), (256, 64, 1e-41),
]  # fmt: skip
SIZES = [("batch_mean", *size) for size in BATCH_SIZES] + [("sequential", *size) for size in BATCH_SIZES[:2]]


@pytest.mark.parametrize(("conflicts", "n", "dim", "scale"), SIZES)
@pytest.mark.parametrize("similarity", ["cos", "dot"])
@pytest.mark.parametrize("metric", ["cos", "dot", "l2"])
def test_the_nearest_is_what_an_exact_search_says(conflicts, n, dim, scale, similarity, metric):
    rng = np.random.default_rng(n)
    keys = (scale * rng.standard_normal((n, dim))).astype(np.float32)
    tokens = (keys[rng.integers(0, n, 40)] + scale * rng.standard_normal((40, dim)) / 2).astype(np.float32)
    truth = mx.Bank(key_dim=dim, metric=similarity)
    truth.write(keys)
    scores, ids = truth.search(tokens, 1)
    assert scores[0, 0] == score(similarity, keys[ids[0, 0]], tokens[0])
    threshold = float(np.sort(scores, axis=None)[15]) if np.isfinite(scores).all() else 0.0
    policy = mx.Consolidate(threshold=threshold, similarity=similarity, conflicts=conflicts)
    bank = mx.Bank(key_dim=dim, metric=metric, write=policy)
    bank.write(keys)
    assert len(bank) == n, "far enough apart, or nothing was there to merge into"
    alone = [bank.copy().write(token[None]).landed[0].item() for token in tokens]
    near = scores[:, 0] >= threshold
    assert alone == np.where(near, ids[:, 0], n).tolist()
    assert near.sum() > 0
    if conflicts == "batch_mean":
        landed = bank.write(tokens).landed[0].reshape(-1)
        assert landed.tolist() == np.where(near, ids[:, 0], n + np.arange(40)).tolist()


@pytest.mark.parametrize("crowd", [1e-7, 1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("similarity", ["cos", "dot"])
def test_the_nearest_in_a_crowd_is_what_an_exact_search_says(crowd, similarity):
    rng = np.random.default_rng(5)
    where = rng.standard_normal((6, 48), np.float32)
    keys = where[rng.integers(0, 6, 700)] + np.float32(crowd) * rng.standard_normal((700, 48), np.float32)
    tokens = where[rng.integers(0, 6, 90)] + np.float32(crowd) * rng.standard_normal((90, 48), np.float32)
    truth = mx.Bank(key_dim=48, metric=similarity)
    truth.write(keys)
    scores, ids = truth.search(tokens, 1)
    for threshold in np.quantile(scores.astype(np.float64), [0.0, 0.5, 0.9]):
        bank = mx.Bank(key_dim=48, write=mx.Consolidate(threshold=float(threshold), similarity=similarity))
        bank.write(keys)  # the first commit finds nothing to merge into
        assert len(bank) == len(keys)
        near = scores[:, 0] >= threshold
        landed = bank.write(tokens).landed[0].reshape(-1)
        assert landed.tolist() == np.where(near, ids[:, 0], len(keys) + np.arange(len(tokens))).tolist()


RUN = """
import hashlib, numpy as np, mnemex as mx
rng = np.random.default_rng(0)
sums = []
for conflicts in ("batch_mean", "sequential"):
    bank = mx.Bank(rows=3, heads=2, key_dim=24, value_dim=8, capacity=200, threads={threads},
                   write=mx.Consolidate(threshold=0.6, conflicts=conflicts), evict=mx.OldestAge())
    for n in (100, 1, 64, 300, 17):
        bank.write(rng.standard_normal((3, 2, n, 24), np.float32), rng.standard_normal((3, 2, n, 8), np.float32))
    hits = bank.search(np.ones((3, 2, 1, 24), np.float32), 200)
    keys, values, columns = bank.gather(hits, columns=["count"])
    parts = (hits.ids, hits.scores, keys, values, columns["count"])
    sums.append(hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest())
print(sums)
"""


def test_the_same_bits_on_any_threads_and_instruction_set():
    def run(threads: int, **environment: str) -> str:
        code = RUN.replace("{threads}", str(threads))
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert run(1) == run(2) == run(1, MNEMEX_ISA="portable")


def test_narrow_tokens_are_kept_in_float32():
    bank = mx.Bank(key_dim=4, value_dim=4, write=mx.Consolidate(threshold=0.9))
    bank.write(np.ones((2, 4), np.float16), np.ones((2, 4), np.float16))
    keys, values = bank.gather([0, 1])
    assert keys.dtype == values.dtype == np.float32


def test_counts_are_read_where_there_are_any():
    bank = mx.Bank(key_dim=4, columns={"count": "int64"})
    bank.write(np.ones((1, 4), np.float32), columns={"count": [9]})
    assert bank.gather([0], columns=["count"])[2]["count"].tolist() == [9]
    with pytest.raises(mx.ArgumentError, match="count"):
        mx.Bank(key_dim=4, columns={"count": "int64"}, write=mx.Consolidate(threshold=0.5))
    plain = mx.Bank(key_dim=4)
    plain.write(np.ones((1, 4), np.float32))
    with pytest.raises(mx.ArgumentError, match="count"):
        plain.gather([0], columns=["count"])


HOW = mx.Consolidate(threshold=0.9)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mx.Consolidate(threshold=float("nan")), "threshold"),
        (lambda: mx.Consolidate(threshold="near"), "threshold"),
        (lambda: mx.Consolidate(threshold=0.9, similarity="l2"), "similarity"),
        (lambda: mx.Consolidate(threshold=0.9, merge="sum"), "merge"),
        (lambda: mx.Consolidate(threshold=0.9, conflicts="first"), "conflicts"),
        (lambda: mx.Consolidate(threshold=0.9, merge="ema"), "needs a rate"),
        (lambda: mx.Consolidate(threshold=0.9, merge="ema", rate=0.0), "rate"),
        (lambda: mx.Consolidate(threshold=0.9, merge="ema", rate=1.5), "rate"),
        (lambda: mx.Consolidate(threshold=0.9, rate=0.5), "ema"),
        (lambda: mx.Bank(key_dim=4, write="consolidate"), "needs a threshold"),
        (lambda: mx.Bank(key_dim=4, write="merge"), "consolidate"),
        (lambda: mx.Bank(key_dim=4, write=HOW, key_codec="bf16"), "key_codec.*float32"),
        (lambda: mx.Bank(key_dim=4, value_dim=4, write=HOW, value_codec="f16"), "value_codec.*float32"),
        (lambda: mx.Bank(key_dim=4, write=HOW, nonfinite="keep"), "raise.*skip"),
        (lambda: mx.Bank(key_dim=4, write=HOW).write(np.ones((1, 4), np.float32), nonfinite="keep"), "raise.*skip"),
        (lambda: mx.Bank(key_dim=4, write=HOW, evict="error", capacity=4), "OldestAge"),
        (lambda: mx.Bank(key_dim=4, write=HOW).write(np.full((1, 4), np.nan, np.float32)), "keys"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, says):
    with pytest.raises(mx.Error, match=says):
        make()


def test_policies_are_values():
    assert mx.Consolidate(threshold=0.9) == HOW != mx.Consolidate(threshold=0.8)
    assert hash(HOW) == hash(mx.Consolidate(threshold=0.9))
