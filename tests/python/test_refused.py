"""What banks and memories refuse, by the name of the argument, and that a memory changes whole or not at all."""

import copy
import pickle

import numpy as np
import pytest

import mnemex as mx


def filled(rows=1):
    bank = mx.Bank(rows=rows, key_dim=4, value_dim=4, columns={"n": "int64"})
    bank.write(*np.ones((2, rows, 1, 4, 4), np.float32))
    return bank


def test_a_memory_changes_in_every_layer_or_in_none():
    memory = mx.Memory({0: filled(2), 1: filled(2)})
    memory[1].reorder([0])
    for change in (
        lambda: memory.truncate([1, 2]),
        lambda: memory.delete([0], rows=[1]),
        lambda: memory.reorder([1, 0]),
        lambda: memory.reset([1]),
    ):
        with pytest.raises(mx.Error):
            change()
        assert memory[0].lengths.tolist() == [[4], [4]]
    ids = memory.stage(0, np.ones((2, 1, 1, 4), np.float32), np.ones((2, 1, 1, 4), np.float32))
    with pytest.raises(mx.Error, match="row 1"):
        memory.rollback([1], 4)
    assert memory.commit()[0].ids[0].tolist() == ids.tolist()
    memory[1].fork(2)
    memory.truncate(1, [1])
    assert memory[0].lengths.tolist() == [[5], [1]]
    assert memory[1].lengths.tolist() == [[4], [1]]
    with pytest.raises(mx.Error, match="rows"):
        mx.Memory({0: filled(2), 3: filled(1)})


def test_a_snapshot_of_a_memory_reads_as_a_memory():
    memory = mx.Memory({3: filled()}, fingerprint="abc", next_position=7)
    frozen = memory.snapshot()
    assert list(frozen) == [3]
    assert 3 in frozen
    assert (frozen.rows, frozen.nbytes > 0, "MemorySnapshot" in repr(frozen)) == (1, True, True)
    assert (frozen.copy().fingerprint, frozen.copy().next_position) == ("abc", 7)
    with pytest.raises(mx.Error, match="layer 9"):
        frozen[9]


def test_copies_are_independent_and_pickles_are_refused():
    for one in (filled(), mx.Memory({0: filled()})):
        for other in (copy.copy(one), copy.deepcopy(one)):
            other.truncate(0)
            assert (len(one), len(other)) == (4, 0)
        with pytest.raises(mx.Error, match="save"):
            pickle.dumps(one)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda b, q: b.search(q, 1, effort=0), "effort"),
        (lambda b, q: b.search(q, 1, effort={"nprobe": 8}), "nprobe"),
        (lambda b, q: b.attend(q, 1, effort=1.5), "effort"),
        (lambda b, q: b.search(q, 1, nonfinite=3), "nonfinite"),
        (lambda b, q: b.attend(q, 1, hits=1), "hits"),
        (lambda b, q: b.attend(q, 1, bias=[-1e300]), "beyond float32"),
        (lambda b, q: b.gather([0], columns=None), "columns"),
        (lambda b, q: b.gather(b.search(q, 1), rows=[0]), "rows"),
        (lambda b, q: b.find(where=("label", "in", [2**53 + 1, 0.5])), "label"),
        (lambda b, q: b.find(where=("label", "<", 2**64)), "beyond int64"),
        (lambda b, q: mx.Bank(key_dim=1, columns={"\ud800": "bool"}), "columns"),
        (lambda b, q: mx.Bank(key_dim=1, columns={"a": None}), "None"),
        (lambda b, q: mx.Bank(key_dim=1, path="x"), "save"),
        (lambda b, q: mx.Bank(key_dim=1, seed="x"), "seed"),
        (lambda b, q: mx.Memory({0: 5}), "banks"),
        (lambda b, q: mx.Memory({"a": b}), "layer"),
        (lambda b, q: mx.Memory({0: b})[[1]], "layer"),
    ],
)
def test_what_cannot_be_is_named(call, says):
    with pytest.raises(mx.Error, match=says):
        call(filled(), np.ones((1, 4), np.float32))


def test_hits_of_lists_and_names_in_arrays_are_read():
    bank, query = filled(), np.ones((1, 4), np.float32)
    hits = bank.search(query, 2, effort=0.5)
    listed = mx.Hits(hits.scores, hits.ids.tolist(), hits.rows)
    bank.touch(listed)
    assert bank.gather(listed, columns=np.array(["id", "n"]))[2]["id"].tolist() == hits.ids.tolist()
    with pytest.raises(TypeError, match=r"write\(\)"):
        bank.write(query, query, label=[1])


def test_an_ingest_is_checked_before_its_source_is_opened():
    bank = mx.Bank(key_dim=2, columns={"prior": "float32"})
    for given, message in [
        ({"columns": {"other": "x"}}, "columns name 'other'; this bank declares 'prior'"),
        ({"on_duplicate": "skip"}, "on_duplicate= compares labels, and label= is missing"),
    ]:
        with pytest.raises(mx.ArgumentError, match=message):
            bank.ingest("nowhere.parquet", key="key", **given)


@pytest.mark.filterwarnings("error")
def test_a_number_beyond_float32_is_named():
    bank = mx.Bank(key_dim=2, value_dim=2)
    bank.write(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32))
    with pytest.raises(mx.ArgumentError, match=r"scale=1e\+300 must be a finite number that float32 can hold"):
        bank.attend(np.ones((1, 2), np.float32), 1, scale=1e300)


def test_a_column_name_that_arrow_cannot_hold_is_refused():
    with pytest.raises(mx.ArgumentError, match="Arrow ends a name at a NUL"):
        mx.Bank(key_dim=2, columns={"a\0b": "bool"})


def test_a_key_of_zeros_has_cosine_zero_beside_any_query():
    bank = mx.Bank(key_dim=2, metric="cos", nonfinite="keep")
    bank.write(np.array([[0, 0], [1, 0]], np.float32))
    hits = bank.search(np.array([[np.inf, 1]], np.float32), 2)
    assert (hits.ids.tolist(), hits.scores.tolist()) == ([[0, -1]], [[0.0, -np.inf]])
