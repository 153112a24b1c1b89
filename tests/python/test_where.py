"""Reads with `where` equal reads of a bank that holds only what passes, whatever the numbers are."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnemex as mx
from plain_bank import attention, best, scores

OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "in": lambda x, values: any(x == value for value in values),
}
COLUMNS = {"size": "float32", "kind": "int64", "seen": "bool"}
WHOLE = [-(2**63), -(2**53) - 1, -3, -1, 0, 1, 2, 5, 2**53, 2**53 + 1, 2**63 - 1]
FLOATS = [-np.inf, -1e300, -2.5, -0.0, 0.1, 0.5, 1.0, 3.0, 2.0**53, 2.0**63, 1e300, np.inf, np.nan]

numbers = st.one_of(st.sampled_from(WHOLE), st.sampled_from(FLOATS), st.integers(0, 160))
ordered = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
conditions = st.one_of(
    st.tuples(st.sampled_from(["id", "label", "position", "kind", "size"]), ordered, numbers),
    st.tuples(st.sampled_from(["id", "kind"]), st.just("in"), st.lists(st.sampled_from(WHOLE), max_size=6)),
    st.tuples(st.sampled_from(["label", "size"]), st.just("in"), st.lists(st.sampled_from(FLOATS), max_size=6)),
    st.tuples(st.just("seen"), st.sampled_from(["==", "!="]), st.booleans()),
    st.tuples(st.just("seen"), st.just("in"), st.lists(st.booleans(), max_size=2)),
)


def single(value: float) -> float:
    """Round a number as it is compared with float32: not where it lies beyond its range."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return value if np.isinf(rounded) and np.isfinite(float(value)) else rounded


def passes(column: str, op: str, value, numbers: np.ndarray) -> np.ndarray:
    """Decide a condition with Python's numbers: they compare integers and floats exactly."""
    if column == "size":
        value = [single(x) for x in value] if op == "in" else single(value)
    return np.array([OPERATORS[op](x, value) for x in numbers.tolist()], bool)


def made(seed: int, rows: int, heads: int, n: int, metric: str, capacity: int | None):
    """Make a bank with entries gone here and there; with its keys, values, columns `[rows, n]` and live ids."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(-3, 4, (rows, heads, n, 5)).astype(np.float32)
    values = rng.standard_normal((rows, heads, n, 3), np.float32)
    columns = {
        "id": np.tile(np.arange(n), (rows, 1)),
        "label": rng.choice([-1, 0, 1, 2, 5, 2**53 + 1], (rows, n)),
        "position": rng.integers(-5, 160, (rows, n)),
        "size": rng.choice(np.array([*FLOATS[2:8], np.nan, np.inf, -np.inf], np.float32), (rows, n)),
        "kind": rng.choice(np.array(WHOLE), (rows, n)),
        "seen": rng.random((rows, n)) < 0.5,
    }
    bank = mx.Bank(rows=rows, heads=heads, key_dim=5, value_dim=3, metric=metric, capacity=capacity, columns=COLUMNS)
    for part in np.array_split(np.arange(n), 3):
        bank.write(
            keys[:, :, part],
            values[:, :, part],
            labels=columns["label"][:, part],
            positions=columns["position"][:, part],
            columns={name: columns[name][:, part] for name in COLUMNS},
        )
    live = np.zeros((rows, n), bool)
    live[:, 0 if capacity is None else max(0, n - capacity) :] = True
    for row in range(rows):
        gone = rng.choice(n, n // 4, replace=False)
        bank.delete(gone, rows=[row])
        live[row, gone] = False
    return bank, keys, values, columns, live


def agrees(bank, keys, values, live, metric, rng, **how) -> None:
    """Every read of the bank equals one of the entries in `live` alone."""
    rows, heads = keys.shape[:2]
    queries = rng.integers(-3, 4, (rows, 2 * heads, 3, 5)).astype(np.float32)
    found = bank.search(queries, 9, **how)
    dense = bank.attend(queries, None, scale=0.25, **how)
    part = bank.attend(queries, 4, scale=0.25, hits=True, **how)
    np.testing.assert_array_equal(part.hits.ids, found.ids[..., : part.hits.ids.shape[-1]])
    for r, head in np.ndindex(rows, 2 * heads):
        ids = np.flatnonzero(live[r])
        mine, told = keys[r, head // 2, ids], values[r, head // 2, ids]
        s = scores(mine, queries[r, head], metric)
        want = best(ids, s, 9)
        np.testing.assert_array_equal(found.ids[r, head], want[1])
        np.testing.assert_array_equal(found.scores[r, head].view(np.int32), want[0].view(np.int32))
        for t in range(3):
            top = np.searchsorted(ids, [i for i in want[1][t, : part.mass.shape[-1]] if i >= 0])
            for got, taken in ((dense, slice(None)), (part, top)):
                out, lse = attention(s[t, taken].astype(np.float64) * 0.25, told[taken])
                np.testing.assert_allclose(got.out[r, head, t], out, atol=2e-5)
                np.testing.assert_allclose(got.lse[r, head, t], lse, atol=2e-5, rtol=1e-5)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 160)),
    metric=st.sampled_from(["dot", "cos", "l2"]),
    capacity=st.sampled_from([None, 40]),
    where=st.lists(conditions, min_size=1, max_size=3),
)
def test_reads_with_conditions_equal_reads_of_what_passes(seed, shape, metric, capacity, where):
    bank, keys, values, columns, live = made(seed, *shape, metric, capacity)
    for column, op, value in where:
        live = live & np.stack([passes(column, op, value, numbers) for numbers in columns[column]])
    agrees(bank, keys, values, live, metric, np.random.default_rng(seed), where=where)
    assert [ids.tolist() for ids in bank.find(where=where)] == [np.flatnonzero(row).tolist() for row in live]
    if len(where) == 1:
        assert [ids.tolist() for ids in bank.find(where=where[0])] == [np.flatnonzero(row).tolist() for row in live]


@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(1, 160), rows=st.integers(1, 3), capacity=st.sampled_from([None, 40])
)
def test_ids_and_bitmaps_equal_reads_of_what_they_name(seed, n, rows, capacity):
    bank, keys, values, _, live = made(seed, rows, 2, n, "dot", capacity)
    rng = np.random.default_rng(seed)
    one, each = rng.random(n + 9) < 0.4, rng.random((rows, n // 2 + 1)) < 0.4
    wide = np.zeros((rows, n), bool)
    wide[:, : each.shape[1]] = each[:, :n]
    ids = np.flatnonzero(one)
    for where in (one, ids, ids[::-1].tolist(), np.r_[ids, ids, 10**15, -4]):
        agrees(bank, keys, values, live & one[:n], "dot", np.random.default_rng(seed), where=where)
    agrees(bank, keys, values, live & wide, "dot", np.random.default_rng(seed), where=each)
    assert [found.tolist() for found in bank.find(where=each)] == [np.flatnonzero(row).tolist() for row in live & wide]


def test_before_and_conditions_hold_together():
    bank, keys, values, columns, live = made(3, 2, 1, 100, "dot", None)
    live &= (columns["kind"] > 0) & (np.arange(100) < 60)
    where = ("kind", ">", 0)
    agrees(bank, keys, values, live, "dot", np.random.default_rng(4), where=where, before=np.full((2, 3), 60))


def test_query_rows_that_read_one_bank_row_see_it_alike_and_by_their_own_bitmaps():
    bank, _, _, columns, live = made(5, 2, 2, 130, "dot", None)
    queries = np.zeros((5, 2, 1, 5), np.float32)
    rows = [1, 0, 1, 1, 0]
    passing = live & (columns["position"] > 40)
    hits = bank.search(queries, 130, rows=rows, where=("position", ">", 40))
    maps = np.random.default_rng(6).random((5, 130)) < 0.5
    own = bank.search(queries, 130, rows=rows, where=maps)
    for at, row in enumerate(rows):
        assert hits.ids[at, 1, 0][hits.valid[at, 1, 0]].tolist() == np.flatnonzero(passing[row]).tolist()
        assert own.ids[at, 1, 0][own.valid[at, 1, 0]].tolist() == np.flatnonzero(live[row] & maps[at]).tolist()


def test_what_comparisons_mean_at_the_edges():
    bank = mx.Bank(key_dim=1, columns=COLUMNS)
    kind = np.array([2**53, 2**53 + 1, -(2**63), 2**63 - 1, 0])
    size = np.array([0.1, np.nan, -0.0, np.inf, 16777216], np.float32)
    bank.write(
        np.ones((5, 1), np.float32), columns={"kind": kind, "size": size, "seen": [True, False, True, False, True]}
    )
    for where, ids in [
        (("kind", "==", 2.0**53), [0]),
        (("kind", ">", 2.0**53), [1, 3]),
        (("kind", "<", 2.0**63), [0, 1, 2, 3, 4]),
        (("kind", ">=", -(2.0**63)), [0, 1, 2, 3, 4]),
        (("kind", "<", -(2.0**63)), []),
        (("kind", "==", 0.5), []),
        (("kind", "!=", 0.5), [0, 1, 2, 3, 4]),
        (("kind", "<", np.nan), []),
        (("kind", "!=", np.nan), [0, 1, 2, 3, 4]),
        (("kind", "in", [0.5, 0.0, 2.0**53]), [0, 4]),
        (("kind", "in", {2**53 + 1, 7}), [1]),
        (("kind", "in", []), []),
        (("size", "==", 0.1), [0]),
        (("size", "<=", np.float64(0.1)), [0, 2]),
        (("size", "<", 0.1), [2]),
        (("size", "==", 0), [2]),
        (("size", "in", [0, 0.1, np.nan]), [0, 2]),
        (("size", "==", np.nan), []),
        (("size", "!=", np.nan), [0, 1, 2, 3, 4]),
        (("size", "!=", np.inf), [0, 1, 2, 4]),
        (("size", "<", 1e300), [0, 2, 4]),
        (("size", ">", 1e300), [3]),
        (("size", "==", 1e300), []),
        (("size", "==", 16777217), [4]),
        (("size", "in", np.zeros(0)), []),
        (("seen", "==", True), [0, 2, 4]),
        (("seen", "!=", np.True_), [1, 3]),
        (("seen", "in", []), []),
        (("seen", "in", [False, True]), [0, 1, 2, 3, 4]),
        ([("seen", "==", True), ("kind", ">", 0)], [0]),
        ([], []),
        ([["seen", "==", True], ["kind", ">", 0]], [0]),
        (range(2, 9), [2, 3, 4]),
    ]:
        assert bank.find(where=where)[0].tolist() == ids, where


def test_an_integer_is_rounded_to_float32_once():
    """By way of float64, 2**60 + 2**36 + 1 would end on the other side of the middle."""
    bank = mx.Bank(key_dim=1, columns={"size": "float32"})
    bank.write(np.ones((2, 1), np.float32), columns={"size": np.array([2.0**60, 2.0**60 + 2.0**37], np.float32)})
    given = 2**60 + 2**36 + 1
    for op, ids in [("==", [1]), ("<", [0]), (">=", [1])]:
        assert bank.find(where=("size", op, given))[0].tolist() == ids, op
    assert bank.find(where=("size", "in", [given, 3]))[0].tolist() == [1]


@pytest.mark.parametrize(
    ("where", "error", "says"),
    [
        (("nobody", "<", 1), ValueError, "nobody.*id, label, position, size"),
        (("size", "~", 1), ValueError, "~"),
        (("size", "<"), ValueError, "column, operator, value"),
        ([("size", "<", 1), 3], ValueError, "column, operator, value"),
        (("seen", "<", True), ValueError, "no order"),
        (("seen", "==", 1), TypeError, "True or False"),
        (("size", "==", True), TypeError, "numbers"),
        (("kind", "==", False), TypeError, "numbers"),
        (("kind", "==", "a"), TypeError, "one number"),
        (("kind", "==", [1, 2]), TypeError, "one number"),
        (("kind", "==", 2**63), ValueError, "int64"),
        (("kind", "==", 2**70), ValueError, "beyond int64"),
        (("kind", "in", 3), TypeError, "list"),
        (("kind", "in", "abc"), TypeError, "list"),
        (("kind", "in", [[1]]), TypeError, "list"),
        ("kind", TypeError, "column, operator, value"),
        (2.5, TypeError, "where"),
        ([0.5], TypeError, "where"),
        (np.ones((2, 2), int), ValueError, "ids"),
        (np.ones((1, 1, 5), bool), ValueError, "bitmap"),
        (np.ones((3, 5), bool), ValueError, "3 bitmaps"),
    ],
)
def test_a_where_that_cannot_be_is_refused_and_says_so(where, error, says):
    bank = mx.Bank(key_dim=1, value_dim=1, columns=COLUMNS)
    bank.write(*np.ones((2, 5, 1), np.float32))
    query = np.ones((1, 1), np.float32)
    for read in (bank, bank.snapshot()):
        for call, how in ((read.search, (query, 2)), (read.attend, (query, None)), (read.find, ())):
            with pytest.raises(mx.Error, match=says) as info:
                call(*how, where=where)
            assert isinstance(info.value, error)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint32, np.uint64])
def test_whole_numbers_of_any_width_name_entries(dtype):
    bank, *_ = made(9, 2, 2, 60, "dot", None)
    bank.delete([7])
    query = np.ones((2, 2, 1, 5), np.float32)
    ids = np.array([3, 7, 50, 99])
    narrow = ids.astype(dtype)
    numbers = np.array([1, 2, 5])
    pairs = [
        (ids, narrow),
        (("id", "in", ids), ("id", "in", narrow)),
        (("id", "<", 50), ("id", "<", dtype(50))),
        (("label", "in", numbers), ("label", "in", numbers.astype(dtype))),
        (("kind", "==", 5), ("kind", "==", dtype(5))),
        (("position", ">=", 20), ("position", ">=", dtype(20))),
        (("size", "<=", 2), ("size", "<=", dtype(2))),
    ]
    for wide, same in pairs:
        for rows in ([1, 0], np.array([1, 0], dtype)):
            want, got = (bank.find(where=where, rows=[1, 0]) for where in (wide, same))
            assert [x.tolist() for x in bank.find(where=same, rows=rows)] == [x.tolist() for x in want]
            assert [x.tolist() for x in got] == [x.tolist() for x in want]
        assert bank.search(query, 9, where=same).ids.tolist() == bank.search(query, 9, where=wide).ids.tolist()
    assert [x.tolist() for x in bank.find(labels=numbers.astype(dtype))] == [
        x.tolist() for x in bank.find(labels=numbers)
    ]


@pytest.mark.parametrize("dtype", [np.int32, np.uint64])
def test_hits_with_ids_of_another_width_are_the_same_hits(dtype):
    banks = [made(9, 2, 2, 60, "dot", None)[0] for _ in range(2)]
    hits = banks[0].search(np.ones((2, 2, 1, 5), np.float32), 9)
    other = mx.Hits(hits.scores, hits.ids.astype(dtype), hits.rows.astype(dtype))
    for bank, touched in zip(banks, (hits, other), strict=True):
        bank.touch(touched)
        bank.commit()
    assert banks[0].stats().touches == banks[1].stats().touches > 0
    for one, two in zip(banks[0].gather(hits), banks[0].gather(other), strict=True):
        assert one.tobytes() == two.tobytes()
    flat = hits.ids[:, 0, 0]
    for one, two in zip(banks[0].gather(flat), banks[0].gather(flat.astype(dtype)), strict=True):
        assert one.tobytes() == two.tobytes()
    for bank, ids in zip(banks, (flat[0], flat[0].astype(dtype)), strict=True):
        bank.delete(ids[:3])
        bank.truncate(ids.dtype.type(40), rows=[1])
    assert [x.tolist() for x in banks[0].find()] == [x.tolist() for x in banks[1].find()]


def test_ids_beyond_int64_are_refused_and_not_wrapped():
    bank, *_ = made(9, 2, 2, 60, "dot", None)
    beyond = np.array([3, 2**64 - 1], np.uint64)  # as int64, -1
    query = np.ones((2, 2, 1, 5), np.float32)
    hits = bank.search(query, 2)
    calls = {
        "where": lambda: bank.search(query, 2, where=beyond),
        "labels": lambda: bank.find(labels=beyond),
        "ids": lambda: bank.delete(beyond),
        "rows": lambda: bank.find(rows=beyond),
        "hits": lambda: bank.touch(mx.Hits(hits.scores, np.full(hits.ids.shape, 2**64 - 1, np.uint64), hits.rows)),
        "end": lambda: bank.truncate(np.uint64(2**64 - 1)),
        "label": lambda: bank.find(where=("label", "in", beyond)),
    }
    for name, call in calls.items():
        with pytest.raises(mx.Error, match=name):
            call()
    assert bank.lengths.tolist() == made(9, 2, 2, 60, "dot", None)[0].lengths.tolist()


def test_every_thread_count_gives_the_same_answer_under_a_filter():
    rng = np.random.default_rng(8)
    keys, values = rng.standard_normal((2, 30_000, 16), np.float32)
    bank = mx.Bank(key_dim=16, value_dim=16, columns={"size": "float32"})
    bank.write(keys, values, columns={"size": rng.standard_normal(30_000, np.float32)})
    queries = rng.standard_normal((40, 16), np.float32)
    for where in (("size", ">", 0.5), ("size", ">", 3.2), [("id", "<", 20_000), ("size", "<", 0)]):
        for read in (lambda t, w=where: bank.search(queries, 20, where=w, threads=t),
                     lambda t, w=where: bank.attend(queries, None, where=w, threads=t)):  # fmt: skip
            one, three = (list(read(threads)) for threads in (1, 3))
            assert [x.tobytes() for x in one] == [x.tobytes() for x in three]
