"""What is staged can be taken back in part, receipts tell where it went, and touches wait for a commit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import mnemex as mx


def keys(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(-4, 5, (2, 2, n, 4)).astype(np.float32)


@pytest.fixture
def bank() -> mx.Bank:
    bank = mx.Bank(rows=2, heads=2, key_dim=4, value_dim="key", capacity=6)
    bank.write(keys(3))
    return bank


def test_one_lane_receipts_have_the_shape_of_the_call():
    bank = mx.Bank(key_dim=4, capacity=2)
    bank.stage(keys(3)[0, 0], mask=[1, 0, 1])
    bank.stage(keys(2)[:1, :1])
    receipt = bank.commit()
    assert [x.tolist() for x in receipt.ids] == [[0, -1, 1], [[2, 3]]]
    assert [x.tolist() for x in receipt.landed] == [[-1, -1, -1], [[[2, 3]]]]
    assert bank.commit().landed == []


def test_landed_is_told_of_an_empty_call_and_of_rows_in_any_order(bank):
    bank.stage(keys(2)[:, :, :0])
    bank.stage(keys(2), rows=[1, 0], mask=[[1, 1], [0, 0]])
    receipt = bank.commit()
    assert [x.shape for x in receipt.landed] == [(2, 2, 0), (2, 2, 2)]
    assert receipt.landed[1].tolist() == [[[3, 4]] * 2, [[-1, -1]] * 2]


def test_rolling_back_rows_leaves_the_others(bank):
    bank.stage(keys(2))
    bank.stage(keys(1)[:1], rows=[1])
    bank.rollback(rows=[1])
    receipt = bank.commit()
    assert [x.tolist() for x in receipt.ids] == [[[3, 4], [-1, -1]]]
    assert bank.lengths.tolist() == [[5, 5], [3, 3]]
    assert bank.stage(keys(1)).tolist() == [[5], [3]]


def test_rolling_back_to_ends_frees_the_ids(bank):
    bank.stage(keys(3))
    bank.stage(keys(2))
    bank.rollback(end=[5, 100])
    assert bank.stage(keys(1)).tolist() == [[5], [8]]
    receipt = bank.commit()
    assert [x.tolist() for x in receipt.ids] == [[[3, 4, -1], [3, 4, 5]], [[-1, -1], [6, 7]], [[5], [8]]]
    assert receipt.landed[0][0].tolist() == [[3, 4, -1]] * 2
    bank.stage(keys(2))
    bank.rollback(end=0)
    bank.reorder([1, 0])  # nothing is staged any more
    assert bank.lengths.tolist() == [[6, 6], [6, 6]]


def test_a_first_write_that_was_taken_back_decides_no_type():
    bank = mx.Bank(key_dim=4)
    bank.stage(np.ones((2, 4), np.float16))
    bank.rollback(end=0)
    bank.write(np.ones((2, 4), np.float32))
    assert bank.stats().key_codec == "f32"


def test_wrong_ends_are_refused_and_nothing_is_dropped(bank):
    bank.stage(keys(2))
    for wrong, error in (([1, 2, 3], mx.ShapeError), (-1, mx.ArgumentError), ("all", mx.DtypeError)):
        with pytest.raises(error, match="end"):
            bank.rollback(end=wrong)
    with pytest.raises(mx.RowError, match="row 2"):
        bank.rollback(rows=[2])
    assert bank.commit().ids[0].tolist() == [[3, 4], [3, 4]]


def test_a_memory_rolls_back_every_layer():
    memory = mx.Memory({0: mx.Bank(key_dim=4), 1: mx.Bank(key_dim=4)})
    for layer in memory:
        memory.stage(layer, keys(3)[0, 0])
    memory.rollback(end=1)
    memory.commit()
    assert len(memory) == 2


def test_touches_count_at_commit_and_go_where_the_entry_goes(bank):
    part = bank.attend(keys(2), 2, hits=True)
    bank.touch(part.hits, part.mass)
    assert bank.stats().touches == 0
    with pytest.raises(mx.StateError, match="touches are staged"):
        bank.reorder([0, 1])
    held = bank.snapshot()
    receipt = bank.commit()
    assert receipt.ids == []
    assert receipt.version == held.version + 1
    assert held.stats().touches == 0
    stats = bank.stats()
    assert stats.touches == part.hits.valid.sum()
    assert stats.mass == pytest.approx(2 * 2 * 2, abs=1e-5)  # rows, heads, queries: one each
    bank.fork(2)
    assert bank.stats().touches == 2 * stats.touches
    assert bank.copy().stats().mass == 2 * stats.mass
    bank.delete(np.arange(3))
    assert (bank.stats().touches, bank.stats().mass) == (0, 0)


def test_touches_of_what_is_not_there_are_passed_over(bank):
    hits = bank.search(keys(1), 3)
    bank.delete([0, 1])
    bank.touch(hits)
    bank.delete([2], rows=[1])
    bank.commit()
    assert (bank.stats().touches, bank.stats().mass) == (2, 0)


def test_touches_take_memory_that_is_counted_and_given_back(bank):
    before = bank.nbytes
    bank.touch(bank.search(keys(1), 3))
    staged = bank.nbytes
    assert staged > before
    bank.rollback()
    assert bank.nbytes == before
    bank.touch(bank.search(keys(1), 3))
    bank.commit()
    assert bank.nbytes > staged
    bank.truncate(0)
    assert bank.nbytes < before


def test_wrong_touches_are_refused_and_nothing_is_staged(bank):
    hits = bank.search(keys(1), 3)
    mass = np.ones(hits.ids.shape, np.float32)
    for call, error, word in (
        (lambda: bank.touch("everything"), mx.DtypeError, "hits"),
        (lambda: bank.touch(bank.attend(keys(1), 1, hits=True)), mx.DtypeError, "hits"),
        (lambda: bank.touch(hits, mass[..., :1]), mx.ShapeError, "mass has shape"),
        (lambda: bank.touch(hits, mass.astype("U4")), mx.DtypeError, "mass"),
        (lambda: bank.touch(hits, mass * np.nan), mx.NonFinite, "mass"),
        (lambda: bank.touch(hits, -mass), mx.NonFinite, "mass"),
        (lambda: mx.Bank(heads=3, key_dim=4).touch(hits), mx.ShapeError, "hits"),
        (lambda: mx.Bank(rows=1, heads=2, key_dim=4).touch(hits), mx.ShapeError, "hits"),
    ):
        with pytest.raises(error, match=word):
            call()
    assert not bank._native.has_staged


def test_a_memory_touches_by_layer():
    memory = mx.Memory({3: mx.Bank(key_dim=4), 7: mx.Bank(key_dim=4)})
    memory.stage(7, keys(3)[0, 0])
    memory.commit()
    memory.touch(7, memory[7].search(keys(1)[0, 0], 2))
    memory.commit()
    assert [stats.touches for stats in memory.stats().values()] == [0, 2]


def test_hits_and_partials_are_padded_unpack_and_keep_the_lane_shape():
    bank = mx.Bank(key_dim=4, value_dim="key")
    queries = keys(2)[0, 0]
    empty = bank.attend(queries, 3, hits=True)
    assert not empty.out.any()
    assert np.isneginf(empty.lse).all()
    assert empty.hits.ids.shape == empty.mass.shape
    bank.write(keys(3)[0, 0], labels=[5, 6, 7])
    scores, ids = hits = bank.search(queries, 5)
    assert scores.shape == ids.shape == hits.labels.shape == hits.valid.shape == (2, 5)
    assert hits.rows.tolist() == [0]
    np.testing.assert_array_equal(hits.valid, [[True] * 3 + [False] * 2] * 2)
    assert np.isneginf(scores[~hits.valid]).all()
    assert (ids[~hits.valid] == -1).all()
    assert (hits.labels[~hits.valid] == -1).all()
    assert (hits.labels[hits.valid] == ids[hits.valid] + 5).all()
    out, lse = part = bank.attend(queries, 2, hits=True)
    assert (out.shape, lse.shape, part.mass.shape) == ((2, 4), (2,), (2, 2))
    np.testing.assert_allclose(part.mass.sum(-1), 1, rtol=1e-6)
    plain = bank.attend(queries, None)
    assert plain.hits is None
    assert plain.mass is None


def test_receipts_are_pickled_whole():
    bank = mx.Bank(heads=2, key_dim=3)
    bank.stage(np.ones((1, 2, 4, 3), np.float32), mask=[[True, False, True, True]])
    receipt = bank.commit()
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(receipt))))
    assert (again.version, again.evicted) == (receipt.version, receipt.evicted)
    for one, other in zip(again.ids + again.landed, receipt.ids + receipt.landed, strict=True):
        assert np.array_equal(one, other)
