"""Evict policies beside a plain model written from their definitions: who is left of every lane after every commit."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnemex as mx

HEADS, DIM = 2, 4


@dataclass
class Entry:
    """What a policy knows of one entry."""

    born: int
    last: int
    score: float = 0.0
    hits: int = 0
    touches: list[tuple[int, int, float]] = field(default_factory=list)  # version, hits, mass


def lot(seed: int, *of: int) -> float:
    """SplitMix64 over the numbers in turn."""
    mask, state = 2**64 - 1, seed
    for x in of:
        z = ((state ^ x) + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        state = z ^ (z >> 31)
    return (state >> 11) / 2**53


def worth(policy, entry: Entry, now: int, head: int, id_: int) -> float:
    """Say what an entry is worth in version `now`, as the policy is defined."""
    if isinstance(policy, mx.OldestAge):
        return entry.born
    if isinstance(policy, mx.Lru):
        return entry.last
    if isinstance(policy, mx.Lfu):
        return sum(hits * policy.decay ** (now - version) for version, hits, _ in entry.touches)
    if isinstance(policy, mx.AttentionMass) and policy.window is not None:
        # Of this period everything, of the one before the share of its versions that the window still covers.
        window, period = policy.window, now // policy.window
        share = (period * window - (now - window + 1)) / window
        told = [(version // window, mass) for version, _, mass in entry.touches]
        return sum(m for at, m in told if at == period) + share * sum(m for at, m in told if at == period - 1)
    if isinstance(policy, mx.AttentionMass):
        return sum(mass * policy.decay ** (now - version) for version, _, mass in entry.touches)
    if isinstance(policy, mx.Retention):
        return math.exp(-(now - entry.last) / (policy.strength + entry.hits))
    if isinstance(policy, mx.MinScore):
        return entry.score * policy.decay ** (now - entry.born)
    if isinstance(policy, mx.Reservoir):
        return lot(policy.seed, head, 0, id_)
    return 0.0


class Lane:
    """A lane of entries by id."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}

    def touch(self, touched: dict[int, tuple[int, float]], version: int) -> None:
        for id_, (hits, mass) in touched.items():
            if id_ in self.entries:
                entry = self.entries[id_]
                entry.hits += hits
                entry.last = version
                entry.touches.append((version, hits, mass))

    def evict(self, policy, capacity: int, now: int, head: int) -> None:
        ids = sorted(self.entries)
        over = len(ids) - capacity
        if over <= 0:
            return
        values = np.array([worth(policy, self.entries[i], now, head, i) for i in ids])
        if isinstance(policy, mx.AttentionMass):
            half = policy.pool // 2
            values = np.array([values[max(0, at - half) : at + half + 1].max() for at in range(len(ids))])
        free = range(policy.sinks, len(ids) - policy.recent)
        for at in sorted(free, key=lambda at: (values[at], ids[at]))[:over]:
            del self.entries[ids[at]]


def ids_of(bank: mx.Bank, row: int = 0) -> list[list[int]]:
    """List the live ids of each head."""
    hits = bank.search(np.zeros((1, HEADS, 1, DIM), np.float32), max(1, len(bank)), rows=[row])
    return [sorted(int(i) for i in hits.ids[0, head, 0] if i >= 0) for head in range(HEADS)]


SHARES = st.sampled_from([1.0, 0.9, 0.37])
PINS = {"sinks": st.integers(0, 3), "recent": st.integers(0, 3)}
POLICIES = st.one_of(
    st.builds(mx.Fifo, **PINS),
    st.builds(mx.OldestAge, **PINS),
    st.builds(mx.Lru, **PINS),
    st.builds(mx.Lfu, decay=SHARES, **PINS),
    st.builds(mx.AttentionMass, decay=SHARES, pool=st.sampled_from([1, 3, 7]), **PINS),
    st.builds(mx.AttentionMass, window=st.sampled_from([1, 2, 5]), pool=st.sampled_from([1, 3]), **PINS),
    st.builds(mx.Retention, strength=st.sampled_from([1.0, 2.5]), **PINS),
    st.builds(mx.MinScore, column=st.just("score"), decay=SHARES, **PINS),
    st.builds(mx.Reservoir, seed=st.integers(0, 5), **PINS),
)
WRITE = st.tuples(st.just("write"), st.integers(1, 9))
TOUCH = st.tuples(st.just("touch"), st.integers(1, 80))
STEP = st.one_of(
    WRITE,
    TOUCH,
    WRITE,
    TOUCH,
    st.tuples(st.just("write"), st.integers(10, 40)),
    st.tuples(st.just("delete"), st.integers(0, 40)),
    st.tuples(st.just("truncate"), st.integers(0, 5)),
    st.tuples(st.sampled_from(["copy", "save", "reorder", "snapshot"]), st.just(0)),
)


@settings(max_examples=250, deadline=None)
@given(
    policy=POLICIES, capacity=st.integers(7, 20), steps=st.lists(STEP, min_size=5, max_size=40), seed=st.integers(0, 99)
)
def test_who_is_left_is_who_the_definition_says(policy, capacity, steps, seed, tmp_path_factory):
    hold(policy, capacity, steps, seed, tmp_path_factory)


@settings(max_examples=150, deadline=None)
@given(
    policy=st.builds(mx.AttentionMass, window=st.integers(1, 7), pool=st.sampled_from([1, 3]), sinks=st.integers(0, 1)),
    steps=st.lists(
        st.one_of(*[st.tuples(st.just("touch"), st.integers(1, 20))] * 4, WRITE, STEP), min_size=20, max_size=60
    ),
    seed=st.integers(0, 99),
)
def test_a_window_of_mass_is_what_the_definition_says(policy, steps, seed, tmp_path_factory):
    hold(policy, 12, [("write", 12), *steps, ("write", 6)], seed, tmp_path_factory)


def hold(policy, capacity, steps, seed, tmp_path_factory):
    """Do the steps to a bank and to plain lanes, and compare after each."""
    rng = np.random.default_rng(seed)
    bank = mx.Bank(
        heads=HEADS, key_dim=DIM, value_dim=DIM, capacity=capacity, evict=policy, columns={"score": "float32"}
    )
    lanes, held = [Lane() for _ in range(HEADS)], []
    next_id = version = 0
    for what, n in steps:
        if what == "write":
            keys = rng.standard_normal((1, HEADS, n, DIM), np.float32)
            scores = rng.standard_normal((1, n), np.float32)
            receipt = bank.write(keys, keys, columns={"score": scores})
            version = receipt.version
            for head, lane in enumerate(lanes):
                for at in range(n):
                    lane.entries[next_id + at] = Entry(version, version, float(scores[0, at]))
                lane.evict(policy, capacity, version, head)
                landed = receipt.landed[0][0, head]
                assert [int(i) for i in landed if i >= 0] == [i for i in lane.entries if i >= next_id]
            next_id += n
        elif what == "touch" and len(bank):
            found = rng.integers(max(0, next_id - capacity - 4), next_id, (1, HEADS, n, 1))
            mass = (rng.random((1, HEADS, n, 1)) * (rng.random((1, HEADS, n, 1)) < 0.7)).astype(np.float32)
            bank.touch(mx.Hits(np.zeros(found.shape, np.float32), found, np.array([0])), mass)
            version = bank.commit().version
            for head, lane in enumerate(lanes):
                touched: dict[int, tuple[int, float]] = {}
                for id_, m in zip(found[0, head, :, 0].tolist(), mass[0, head, :, 0].tolist(), strict=True):
                    hits, before = touched.get(id_, (0, 0.0))
                    touched[id_] = (hits + 1, before + m)
                lane.touch(touched, version)
        elif what == "delete":
            gone = [i for i in range(next_id) if rng.random() < n / 100]
            bank.delete(ids=gone)
            for lane in lanes:
                lane.entries = {i: entry for i, entry in lane.entries.items() if i not in gone}
        elif what == "truncate":
            next_end = max(0, next_id - n)
            bank.truncate(next_end)
            for lane in lanes:
                lane.entries = {i: entry for i, entry in lane.entries.items() if i < next_end}
        elif what == "copy":
            bank = bank.copy()
        elif what == "save":
            folder = tmp_path_factory.mktemp("evict") / "bank"
            bank.save(folder)
            bank = mx.open(folder)
        elif what == "reorder":
            bank.reorder([0])
        elif what == "snapshot":
            held.append((bank.snapshot(), [sorted(lane.entries) for lane in lanes]))
        assert ids_of(bank) == [sorted(lane.entries) for lane in lanes]
        assert (bank.lengths <= capacity).all()
    for snapshot, ids in held:
        assert ids_of(snapshot) == ids


def filled(evict, *, capacity: int = 64, seed: int = 0, **how) -> mx.Bank:
    bank = mx.Bank(heads=HEADS, key_dim=DIM, capacity=capacity, evict=evict, seed=seed, **how)
    bank.write(np.ones((1, HEADS, capacity, DIM), np.float32))
    return bank


def test_a_random_victim_was_there_before_and_each_is_as_likely():
    n, k, t, trials = 64, 8, 20, 150
    survived = np.zeros(n)
    for seed in range(trials):
        bank = filled(mx.Random(seed=seed), capacity=n)
        for _ in range(t):
            landed = bank.write(np.ones((1, HEADS, k, DIM), np.float32)).landed[0]
            assert (landed >= 0).all()
        for ids in ids_of(bank):
            survived[[i for i in ids if i < n]] += 1
    p = (1 - k / n) ** t
    total, draws = survived.sum(), trials * HEADS * n
    assert abs(total - draws * p) < 5 * math.sqrt(draws * p * (1 - p))
    each = trials * HEADS
    assert (np.abs(survived - each * p) < 6 * math.sqrt(each * p * (1 - p))).all()


def test_random_draws_follow_the_seed():
    def left(policy, seed: int = 0) -> list[list[int]]:
        bank = filled(policy, seed=seed)
        for n in (1, 5, 40, 64, 100):
            bank.write(np.ones((1, HEADS, n, DIM), np.float32))
        return ids_of(bank)

    assert left(mx.Random(seed=7)) == left(mx.Random(seed=7)) == left("random", 7) == left(mx.Random(), 7)
    assert left(mx.Random(seed=7)) != left(mx.Random(seed=8))
    assert left(mx.Random(seed=7))[0] != left(mx.Random(seed=7))[1], "heads draw apart"
    assert left("reservoir", 3) == left(mx.Reservoir(seed=3))


@pytest.mark.parametrize("n", [1, 30, 59, 64, 90, 500])
def test_random_pins_hold_whatever_arrives(n):
    bank = filled(mx.Random(sinks=3, recent=2))
    bank.write(np.ones((1, HEADS, n, DIM), np.float32))
    for ids in ids_of(bank):
        assert len(ids) == 64
        assert ids[:3] == [0, 1, 2]
        assert ids[-2:] == [64 + n - 2, 64 + n - 1]


def test_a_reservoir_is_an_even_sample_of_all_that_was_written():
    n, total, trials = 32, 320, 200
    seen = np.zeros(total)
    for seed in range(trials):
        bank = filled(mx.Reservoir(seed=seed), capacity=n)
        for _ in range(total // n - 1):
            bank.write(np.ones((1, HEADS, n, DIM), np.float32))
        for ids in ids_of(bank):
            seen[ids] += 1
    tenths = seen.reshape(10, -1).sum(1)
    expected = trials * HEADS * n / 10
    assert (np.abs(tenths - expected) < 5 * math.sqrt(expected)).all()


def test_staged_touches_count_before_the_commit_evicts():
    bank = filled(mx.Lru(), capacity=4)
    bank.touch(mx.Hits(np.zeros((1, HEADS, 1, 1), np.float32), np.zeros((1, HEADS, 1, 1), np.int64), np.array([0])))
    bank.write(np.ones((1, HEADS, 2, DIM), np.float32))
    assert ids_of(bank) == [[0, 3, 4, 5]] * HEADS


def test_forks_go_on_each_by_itself():
    bank = filled(mx.Lru(), capacity=4)
    bank.fork(2)
    hits = mx.Hits(np.zeros((1, HEADS, 1, 1), np.float32), np.zeros((1, HEADS, 1, 1), np.int64), np.array([1]))
    bank.touch(hits)
    bank.write(np.ones((2, HEADS, 1, DIM), np.float32))
    assert [ids_of(bank, row)[0] for row in (0, 1)] == [[1, 2, 3, 4], [0, 2, 3, 4]]


def test_a_bank_of_columns_is_asked_for_them():
    with pytest.raises(mx.ArgumentError, match="float32 column"):
        mx.Bank(key_dim=4, capacity=4, evict=mx.MinScore(column="surprise"))
    with pytest.raises(mx.ArgumentError, match="float32 column"):
        mx.Bank(key_dim=4, capacity=4, evict=mx.MinScore(column="n"), columns={"n": "int64"})
    with pytest.raises(mx.ArgumentError, match="needs a column"):
        mx.Bank(key_dim=4, capacity=4, evict="min_score", columns={"surprise": "float32"})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mx.Lru(sinks=-1), "sinks"),
        (lambda: mx.Lfu(decay=0.0), "decay"),
        (lambda: mx.Lfu(decay=1.5), "decay"),
        (lambda: mx.AttentionMass(decay=math.nan), "decay"),
        (lambda: mx.AttentionMass(pool=2), "pool"),
        (lambda: mx.AttentionMass(pool=0), "pool"),
        (lambda: mx.AttentionMass(window=0), "window"),
        (lambda: mx.AttentionMass(window=2.5), "window"),
        (lambda: mx.AttentionMass(window=4, decay=0.5), "window=4"),
        (lambda: mx.Retention(strength=0.0), "strength"),
        (lambda: mx.MinScore(column=3), "column"),
        (lambda: mx.Random(seed=-1), "seed"),
        (lambda: mx.Bank(key_dim=4, capacity=4, evict=mx.Lru(sinks=2, recent=2)), "pin fewer"),
        (lambda: mx.Bank(key_dim=4, evict="lifo"), "lifo"),
        (lambda: mx.Bank(key_dim=4, evict=mx.Lru), "evict"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, says):
    with pytest.raises(mx.Error, match=says):
        make()


def test_policies_are_values():
    assert mx.Lru(sinks=4) == mx.Lru(sinks=4) != mx.Lru()
    assert copy.copy(mx.Lfu(decay=0.5)) == mx.Lfu(decay=0.5)
    assert hash(mx.Random(seed=1)) == hash(mx.Random(seed=1))


def test_a_window_of_one_is_what_was_told_last():
    bank = filled(mx.AttentionMass(window=1), capacity=4)
    for first, mass in ((0, 1.0), (1, 9.0), (2, 0.5)):
        ids = np.arange(first, first + 2)[:, None] * np.ones((1, HEADS, 1, 1), np.int64)
        bank.touch(mx.Hits(np.zeros(ids.shape, np.float32), ids, np.array([0])), np.full(ids.shape, mass, np.float32))
        if first < 2:
            bank.commit()
    bank.write(np.ones((1, HEADS, 2, DIM), np.float32))
    assert ids_of(bank) == [[2, 3, 4, 5]] * HEADS, "what was told by the commit that evicts counts, and nothing else"


def test_a_touch_never_lowers_worth_however_long_ago_the_one_before_was():
    bank = filled(mx.AttentionMass(decay=0.5), capacity=4)
    every = np.broadcast_to(np.arange(4)[:, None], (1, HEADS, 4, 1))
    bank.touch(mx.Hits(np.zeros(every.shape, np.float32), every, np.array([0])), np.ones(every.shape, np.float32))
    bank.commit()
    for _ in range(1200):
        bank.delete(ids=[])
    first = np.zeros((1, HEADS, 1, 1), np.int64)
    bank.touch(mx.Hits(np.zeros(first.shape, np.float32), first, np.array([0])), np.zeros(first.shape, np.float32))
    bank.write(np.ones((1, HEADS, 3, DIM), np.float32))
    assert ids_of(bank) == [[0, 1, 2, 3]] * HEADS, "the new ones, never attended to, are worth less"


def test_sums_of_use_stay_finite_and_come_back(tmp_path):
    bank = filled(mx.AttentionMass(), capacity=4)
    first = np.zeros((1, HEADS, 1, 1), np.int64)
    for _ in range(3):
        bank.touch(mx.Hits(np.zeros(first.shape, np.float32), first, np.array([0])), np.full(first.shape, 1e308))
    bank.commit()
    bank.save(tmp_path / "bank")
    assert math.isfinite(mx.open(tmp_path / "bank").stats().mass)
