"""What a plan may not do, what it may do to others, and what a file keeps of it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import mnemex as mx
from examples.policies import LeastRecent, NearestMean
from mnemex.testing import state_of, tokens
from policy_parts import SHAPE, Plan, filled

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
        assert bank.search(keys, 1).ids.max() < 3 + policy.calls  # what is staged is not there
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
    one, other = (x.write(keys, values) for x in (bank, opened))
    assert one.landed[0].tolist() == other.landed[0].tolist()
    assert state_of(bank) == state_of(opened)
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
