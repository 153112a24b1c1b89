"""A bank as a table, and back: what pyarrow, polars and duckdb cut, chunk and join gives the same bank."""

from __future__ import annotations

from itertools import pairwise

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnemex as mx
from arrow_forms import DIM, fixed, holds, ingested, whole

BACK = {"key": "key", "value": "value", "row": "row", "head": "head", "label": "label", "position": "position"}


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("value_dim", [None, 3, "key"])
def test_what_goes_out_comes_back_bit_for_bit(codec, value_dim):
    rng = np.random.default_rng(3)
    bank = mx.Bank(rows=2, heads=2, key_dim=DIM, value_dim=value_dim, key_codec=codec, value_codec=codec)
    keys = rng.standard_normal((2, 2, 150, DIM)).astype(np.float32)
    values = rng.standard_normal((2, 2, 150, 3)).astype(np.float32) if value_dim == 3 else None
    bank.write(keys, values, labels=rng.integers(-9, 9, (2, 150)), positions=rng.integers(0, 99, (2, 150)))
    bank.delete(ids=[0, 63, 64, 65, 149])
    bank.delete(ids=np.arange(70, 140), rows=[1])
    table = pa.table(bank.to_arrow())
    live = [np.setdiff1d(np.arange(150), [0, 63, 64, 65, 149])]
    live.append(np.setdiff1d(live[0], np.arange(70, 140)))
    assert len(bank.to_arrow()) == table.num_rows == len(bank)
    for row in range(2):
        mine = table.filter(pa.compute.equal(table["row"], row))
        np.testing.assert_array_equal(mine["id"], np.repeat(live[row], 2))
        np.testing.assert_array_equal(mine["head"], np.tile([0, 1], len(live[row])))
    other = mx.Bank(rows=2, heads=2, key_dim=DIM, value_dim=value_dim)
    how = {**BACK, "value": "value" if value_dim == 3 else None}
    other.ingest(bank.to_arrow(), **how)
    back = pa.table(other.to_arrow())
    assert back.drop(["id"]) == table.drop(["id"])
    assert back.schema == table.schema


def test_a_table_is_one_version_and_may_be_read_again():
    bank = mx.Bank(key_dim=DIM)
    out = bank.to_arrow()
    bank.write(whole(1, 5, DIM))
    snapshot, later = bank.snapshot(), bank.to_arrow()
    bank.stage(whole(2, 3, DIM))
    assert [pa.table(t).num_rows for t in (out, later, later, snapshot.to_arrow())] == [0, 5, 5, 5]
    bank.commit()
    assert [len(t) for t in (out, later, snapshot.to_arrow(), bank.to_arrow())] == [0, 5, 5, 8]
    assert pa.schema(later) == pa.table(later).schema
    assert "5 rows" in repr(later)
    forked = bank.copy()
    forked.fork(3)
    assert pa.table(forked.to_arrow())["row"].to_pylist() == [0] * 8 + [1] * 8 + [2] * 8


def test_polars_and_duckdb_read_it():
    bank = mx.Bank(key_dim=DIM, value_dim=2)
    bank.write(whole(1, 9, DIM), whole(2, 9, 2), labels=np.arange(9) * 10)
    out = bank.to_arrow()
    assert pl.DataFrame(out)["label"].to_list() == list(range(0, 90, 10))
    assert duckdb.sql("select sum(label), max(id) from out").fetchall() == [(360, 8)]


CUTS = st.lists(st.integers(0, 40), max_size=6)
WAYS = st.sampled_from(["pyarrow", "lists", "polars", "duckdb"])


def cut(table, cuts):
    """Take the same rows in slices, one after the other."""
    edges = [0, *sorted(cut for cut in cuts if cut <= table.num_rows), table.num_rows]
    return [table.slice(a, b - a) for a, b in pairwise(edges)]


def produced(way, table, cuts):
    """Make the table as that library does it of slices of slices."""
    if way == "lists":
        lists = {name: pa.array(table[name].to_pylist(), pa.large_list(pa.float32())) for name in ("k", "v")}
        return pa.concat_tables(cut(pa.table({**lists, "r": table["r"]}), cuts))
    if way == "polars":
        return pl.concat([pl.DataFrame(part) for part in cut(table, cuts)], rechunk=False)
    joined = pa.concat_tables(cut(table, cuts))
    if way == "pyarrow":
        return joined
    connection = duckdb.connect()
    connection.register("t", joined)
    return connection.sql("select * from t")


@given(
    way=WAYS,
    n=st.integers(0, 40),
    first=st.integers(0, 40),
    cuts=CUTS,
    half=st.booleans(),
    nulls=st.lists(st.integers(0, 39), max_size=4),
    batch_bytes=st.sampled_from([1, 64, 500, 1 << 26]),
)
def test_tables_that_were_cut_chunked_and_joined_give_the_bank_of_the_plain_arrays(
    way, n, first, cuts, half, nulls, batch_bytes
):
    dtype = np.float16 if half and way not in ("duckdb", "lists") else np.float32
    keys, values = whole(n, n, DIM, dtype=dtype), whole(n + 1, n, 3, dtype=dtype)
    rows = np.random.default_rng(n).integers(0, 2, n)
    null = np.isin(np.arange(n), nulls)
    whole_table = pa.table({"k": fixed(keys, null), "v": fixed(values), "r": pa.array(rows)})
    table = produced(way, whole_table.slice(first), cuts)
    bank = mx.Bank(rows=2, key_dim=DIM, value_dim=3)
    report = bank.ingest(table, key="k", value="v", row="r", nulls="skip", batch_bytes=batch_bytes)
    here = np.arange(n) >= first
    assert (report.rows, report.entries) == (here.sum(), (here & ~null).sum())
    for row in range(2):
        mine = here & ~null & (rows == row)
        ids = np.arange(mine.sum())
        assert bank.lengths[row, 0] == len(ids)
        if len(ids):
            got = bank.gather(ids[None], rows=[row])
            np.testing.assert_array_equal(got[0][0, 0], keys[mine])
            np.testing.assert_array_equal(got[1][0, 0], values[mine])


def test_the_helper_of_these_tests_sees_a_difference():
    bank = ingested(pa.table({"k": fixed(whole(1, 3, DIM))}))
    with pytest.raises(AssertionError):
        holds(bank, whole(2, 3, DIM))


def test_short_rows_share_a_batch_and_long_ones_are_cut():
    lengths = [1, 0, 3, 70_000, 2, 0, 66_000, 1, 0]
    bank = mx.Bank(rows=len(lengths), heads=1, key_dim=1, columns={"page": "int64"})
    for row, n in enumerate(lengths):
        if n:
            keys = np.arange(n, dtype=np.float32).reshape(1, 1, n, 1)
            bank.write(keys, rows=[row], labels=np.arange(n)[None] + row, columns={"page": np.arange(n)[None] * 2})
    batches = pa.RecordBatchReader.from_stream(bank.to_arrow()).read_all().to_batches()
    assert len(batches) == 5
    table = pa.Table.from_batches(batches)
    ids = np.concatenate([np.arange(n) for n in lengths])
    rows = np.repeat(np.arange(len(lengths)), lengths)
    for name, want in (("row", rows), ("id", ids), ("label", ids + rows), ("position", ids), ("page", ids * 2)):
        np.testing.assert_array_equal(table[name], want)
    np.testing.assert_array_equal(table["key"].combine_chunks().flatten(), ids)
    many = mx.Bank(rows=500, key_dim=1)
    many.write(np.ones((500, 1, 1, 1), np.float32))
    assert len(pa.RecordBatchReader.from_stream(many.to_arrow()).read_all().to_batches()) == 1
