"""Policies in Python beside the native ones and beside a plain model, and what a plan may not do."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnemex as mx
from examples.policies import LeastRecent, NearestMean
from mnemex.testing import state_of, tokens

SHAPE = {"rows": 2, "heads": 2, "key_dim": 3, "value_dim": 2}


class Plan:
    """A policy that answers as it is told, and notes what it saw."""

    def __init__(self, answer=None):
        self.answer, self.calls = answer or (lambda *_: mx.Edits()), 0

    def plan(self, columns, staged, hits):
        self.calls += 1
        self.seen = columns, staged, hits
        return self.answer(columns, staged, hits)


def filled(policy, n=3, **options):
    """Make a bank with n entries in each lane."""
    bank = mx.Bank(**SHAPE | {"write": policy} | options)
    bank.write(*tokens(np.random.default_rng(1), bank, bank.rows, n))
    return bank


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


F32 = np.float32
BAD = [
    (lambda c, s: None, mx.DtypeError, "returned NoneType; expected mnemex.Edits"),
    (lambda c, s: mx.Edits(kill=[len(c)]), mx.IdError, "kill names place 12; places are from 0 to 11"),
    (lambda c, s: mx.Edits(kill=[-1]), mx.IdError, "kill names place -1"),
    (lambda c, s: mx.Edits(kill=[3, 3]), mx.ArgumentError, "kill names id 0 of row 0, head 1 twice"),
    (lambda c, s: mx.Edits(kill=[0.5]), mx.DtypeError, "kill is float64"),
    (lambda c, s: mx.Edits(kill=[[0]]), mx.ShapeError, "kill has shape"),
    (lambda c, s: mx.Edits(kill=np.ones(3, bool)), mx.ShapeError, "kill is a mask of 3; expected one of 12"),
    (lambda c, s: mx.Edits(append=[0, 0]), mx.ArgumentError, "append names a token twice"),
    (lambda c, s: mx.Edits(append=[99]), mx.IdError, "append names place 99"),
    (lambda c, s: mx.Edits(merge=([11], [0])), mx.ArgumentError, "nothing crosses lanes"),
    (lambda c, s: mx.Edits(merge=([0], [0, 1])), mx.ShapeError, "1 entries for 2 tokens"),
    (lambda c, s: mx.Edits(merge=[0, 0]), mx.ShapeError, r"expected \(into, tokens\)"),
    (lambda c, s: mx.Edits(merge=([0, 1], [0, 0])), mx.ArgumentError, "merged twice"),
    (lambda c, s: mx.Edits(merge=([0], [0]), append=[0]), mx.ArgumentError, "merged and appended"),
    (lambda c, s: mx.Edits(merge=([0], [0]), kill=[0]), mx.ArgumentError, "ended and changed"),
    (lambda c, s: mx.Edits(merge=([len(c) + 1], [0]), append=[]), mx.ArgumentError, "changed and is not appended"),
    (lambda c, s: mx.Edits(merge=([len(c) + len(s)], [0])), mx.IdError, "merge into names place 20"),
    (lambda c, s: mx.Edits(rewrite=([0], np.zeros((1, 3)), None)), mx.DtypeError, "keys are float64"),
    (lambda c, s: mx.Edits(rewrite=([0], np.zeros((2, 3), F32), np.zeros((1, 2), F32))), mx.ShapeError, "keys have"),
    (lambda c, s: mx.Edits(rewrite=([0], np.zeros((1, 3), F32), np.zeros((1, 3), F32))), mx.ShapeError, "values have"),
    (
        lambda c, s: mx.Edits(rewrite=([4], np.full((1, 3), np.nan, F32), np.zeros((1, 2), F32))),
        mx.NonFinite,
        "keys hold NaN for id 1 of row 0, head 1",
    ),
    (
        lambda c, s: mx.Edits(rewrite=([0, 0], np.zeros((2, 3), F32), np.zeros((2, 2), F32))),
        mx.ArgumentError,
        "two new keys",
    ),
    (lambda c, s: mx.Edits(kill=[]) and 1 / 0, ZeroDivisionError, "division"),
    (lambda c, s: c["nothing"], mx.ArgumentError, "nothing"),
    (lambda c, s: c.keys([99]), mx.IdError, "place 99"),
    (lambda c, s: c.least([1.0], 1), mx.ShapeError, "worth has shape"),
]


@pytest.mark.parametrize(("wrong", "error", "match"), BAD, ids=[match for _, _, match in BAD])
def test_a_wrong_plan_is_refused_and_nothing_is_lost(wrong, error, match):
    policy = Plan()
    bank = filled(policy)
    before, version = state_of(bank), bank.version
    policy.answer = lambda columns, staged, hits: wrong(columns, staged)
    bank.stage(*tokens(np.random.default_rng(2), bank, 2, 2))
    for _ in range(2):
        with pytest.raises(error, match=match):
            bank.commit()
    assert state_of(bank) == before
    assert bank.version == version
    policy.answer = lambda *_: mx.Edits()
    assert bank.commit().landed[0].tolist() == [[[3, 4]] * 2] * 2


def test_what_plan_raises_is_what_commit_raises():
    class Mine(Exception):
        pass

    raised = Mine("as it is")

    def fail(*_):
        raise raised

    bank = mx.Bank(**SHAPE, write=Plan(fail))
    with pytest.raises(Mine) as caught:
        bank.write(*tokens(np.random.default_rng(0), bank, 2, 1))
    assert caught.value is raised
    assert bank.commit().ids == []  # a write that failed leaves nothing of it staged


def test_what_is_left_beyond_the_capacity():
    def keep_all(*_):
        return mx.Edits()

    bank = filled(Plan(keep_all), n=4, capacity=4)  # evict="fifo"
    keys, values = tokens(np.random.default_rng(2), bank, 2, 2)
    assert bank.write(keys, values).evicted == 8
    assert [sorted(lane) for lane in state_of(bank)[0]] == [[2, 3, 4, 5]] * 2
    for given_as in ({"write": Plan(), "evict": "error"}, {"write": "append", "evict": Plan()}):
        bank = filled(Plan(), n=4, capacity=4, **given_as)
        before = state_of(bank)
        bank.stage(keys, values)
        with pytest.raises(
            mx.CapacityError, match=r"6 entries are left in row 0, head 0, and the capacity is 4: .* 2 more"
        ):
            bank.commit()
        assert state_of(bank) == before
        policy = given_as["evict"] if isinstance(given_as["evict"], Plan) else given_as["write"]
        policy.answer = lambda columns, staged, hits: mx.Edits(kill=columns.least(columns.id, 2))
        assert bank.commit().evicted == 8


def test_the_bank_can_be_read_and_not_changed_inside_plan():
    policy = Plan()
    bank = filled(policy)
    memory = mx.Memory({0: bank})
    keys, values = tokens(np.random.default_rng(0), bank, 2, 1)
    hits = bank.search(keys, 1)
    calls = [
        lambda: bank.stage(keys, values),
        lambda: bank.write(keys, values),
        lambda: bank.commit(),
        lambda: bank.rollback(),
        lambda: bank.delete([0]),
        lambda: bank.truncate(0),
        lambda: bank.reset(),
        lambda: bank.reorder([0]),
        lambda: bank.fork(2),
        lambda: bank.touch(hits),
        lambda: bank.nbytes,
        lambda: bank.stats(),
        lambda: memory.commit(),
        lambda: memory.delete([0]),
    ]

    def call_all(columns, staged, hits_):
        for call in calls:
            with pytest.raises(mx.StateError, match="in the middle of a commit"):
                call()
        assert bank.search(keys, 1).ids.tolist() == hits.ids.tolist()
        assert len(bank) == len(columns)
        other = mx.Bank(**SHAPE)
        other.write(keys, values)  # another bank is another bank
        return mx.Edits()

    policy.answer = call_all
    memory.stage(0, keys, values)
    memory.commit()
    assert policy.calls == 2
    bank.write(keys, values)
    assert policy.calls == 3


def test_other_threads_wait_and_read_meanwhile():
    inside, go_on = threading.Event(), threading.Event()

    def slow(*_):
        inside.set()
        assert go_on.wait(20)
        return mx.Edits()

    policy = Plan()
    bank = filled(policy)
    keys, values = tokens(np.random.default_rng(0), bank, 2, 1)
    policy.answer = slow
    threads = [threading.Thread(target=bank.write, args=(keys, values))]
    threads[0].start()
    assert inside.wait(20)
    threads += [threading.Thread(target=bank.write, args=(keys, values)) for _ in range(2)]
    [thread.start() for thread in threads[1:]]
    assert len(bank) == 12  # reads go on, the interpreter is not held
    assert bank.search(keys, 1).ids.shape == (2, 2, 1, 1)
    go_on.set()
    [thread.join(20) for thread in threads]
    assert not any(thread.is_alive() for thread in threads)
    assert len(bank) == 24


def test_what_plan_was_shown_is_gone_afterwards():
    policy = Plan(lambda columns, staged, hits: mx.Edits(kill=columns.id[:0]))
    bank = filled(policy)
    columns, staged, hits = policy.seen
    assert columns.id.tolist() == []  # what was read is kept
    for read in (lambda: columns.label, lambda: columns.keys(), lambda: staged.values(), lambda: columns["x"]):
        with pytest.raises(mx.StateError, match="plan has returned"):
            read()
    assert len(hits) == 0
    assert len(bank) == 12


def test_a_file_holds_the_name(tmp_path):
    policy = LeastRecent(sinks=1)
    bank = filled(policy, n=6, capacity=4)
    bank.save(tmp_path / "bank")
    closed = mx.open(tmp_path / "bank")
    assert state_of(closed) == state_of(bank)
    keys, values = tokens(np.random.default_rng(2), bank, 2, 2)
    for write in (closed.stage, closed.write, closed.copy().stage):
        with pytest.raises(mx.StateError, match='saved with the policy "LeastRecent", which a file cannot hold'):
            write(keys, values)
    closed.delete([0])
    closed.save(tmp_path / "again")
    opened = mx.open(tmp_path / "bank", write=policy)
    assert_alike([bank, opened], [bank.write(keys, values), opened.write(keys, values)])
    with pytest.raises(mx.ArgumentError, match='made with "LeastRecent", not with the policy "NearestMean"'):
        mx.open(tmp_path / "bank", write=NearestMean(0.5))
    with pytest.raises(mx.ArgumentError, match="one object with plan"):
        mx.open(tmp_path / "bank", write="append")
    mx.Bank(key_dim=2).save(tmp_path / "plain")
    with pytest.raises(mx.ArgumentError, match="saved with the write policy 'append'"):
        mx.open(tmp_path / "plain", evict=policy)
    memory = mx.Memory({0: bank, 1: mx.Bank(**SHAPE)})
    memory.save(tmp_path / "memory")
    again = mx.open(tmp_path / "memory", write=policy)
    again[0].write(keys, values)
    again[1].write(keys, values)


def test_what_does_not_go_with_it():
    for options, match in (
        ({"key_codec": "bf16"}, "write=Plan keeps float32"),
        ({"nonfinite": "keep"}, "with write=Plan"),
        ({"columns": {"count": "int64"}}, "with write=Plan it is there already"),
        ({"write": mx.Consolidate(threshold=0.5), "evict": Plan()}, "leave write= out"),
        ({"write": Plan}, "write=.* is not known"),
    ):
        with pytest.raises(mx.ArgumentError, match=match):
            mx.Bank(**SHAPE | {"write": Plan()} | options)
    named = Plan()
    named.name = 3
    with pytest.raises(mx.DtypeError, match="must be a word"):
        mx.Bank(**SHAPE, write=named)


def test_use_is_told_where_it_is_wanted():
    assert mx.Bank(key_dim=2, write=LeastRecent()).wants_use
    assert not mx.Bank(key_dim=2, write=NearestMean(0.5)).wants_use
    assert isinstance(LeastRecent(), mx.Policy)


def test_half_precision_is_taken_and_kept_in_float32():
    bank = mx.Bank(**SHAPE, write=NearestMean(-2.0))
    keys, values = (x.astype(np.float16) for x in tokens(np.random.default_rng(0), bank, 2, 4))
    bank.write(keys[:, :, :1], values[:, :, :1])
    bank.write(keys[:, :, 1:], values[:, :, 1:])
    got, _ = bank.gather(np.zeros((2, 1), np.int64))
    want = keys.astype(np.float64).mean(2).astype(np.float32)
    assert np.array_equal(got.reshape(2, 2, 3), want)
