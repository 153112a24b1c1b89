"""Tables in: every form of a vector column, rows, heads, nulls, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import mnemex as mx
from arrow_forms import DIM, Broken, fixed, holds, ingested, whole

K = whole(1, 9, DIM)
FORMS = {
    "fixed-size lists": fixed(K),
    "lists": pa.array(K.tolist(), pa.list_(pa.float32())),
    "large lists": pa.array(K.tolist(), pa.large_list(pa.float32())),
    "list views": pa.ListViewArray.from_arrays(
        pa.array(np.arange(9)[::-1] * DIM, pa.int32()), pa.array([DIM] * 9, pa.int32()), pa.array(K[::-1].reshape(-1))
    ),
    "a dictionary": pa.DictionaryArray.from_arrays(pa.array(range(9), pa.int8()), fixed(K)),
    "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(K),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_vector_column_is_read(form):
    holds(ingested(pa.table({"k": FORMS[form]})), K)
    holds(ingested(pa.table({"k": FORMS[form].slice(2, 5)})), K[2:7])


@pytest.mark.parametrize("name", ["mnemex.dtype", "dtype"])
@pytest.mark.parametrize(("dtype", "bits"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_raw_bytes_are_read_as_their_metadata_say(name, dtype, bits):
    raw = K.view(np.uint32) >> 16 if dtype == "bfloat16" else K.astype(dtype)
    raw = np.ascontiguousarray(raw.astype(np.uint16) if dtype == "bfloat16" else raw)
    rows = [row.tobytes() for row in raw]
    # One byte before the first row: not aligned.
    array = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(DIM * bits), 9, [None, pa.py_buffer(b"x" + b"".join(rows)).slice(1)]
    )
    field = pa.field("k", pa.binary(DIM * bits), metadata={name: dtype})
    bank = ingested(pa.table([array], schema=pa.schema([field])).slice(1))
    holds(bank, K[1:])
    if bits == 2:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(raw.view(np.uint16).reshape(-1)), DIM)
        field = pa.field("k", lists.type, metadata={name: dtype})
        holds(ingested(pa.table([lists], schema=pa.schema([field]))), K)


def test_heads_come_nested_or_one_after_the_other():
    k, v = whole(2, 7, 3, DIM), whole(3, 7, 3, 2)
    for keys in (fixed(k), fixed(k.reshape(7, -1)), pa.array(k.tolist(), pa.list_(pa.list_(pa.float32())))):
        bank = mx.Bank(heads=3, key_dim=DIM, value_dim=2)
        report = bank.ingest(pa.table({"k": keys.slice(1), "v": fixed(v).slice(1)}), key="k", value="v")
        holds(bank, k[1:].swapaxes(0, 1)[None], v[1:].swapaxes(0, 1)[None])
        assert (report.rows, report.entries, len(bank)) == (6, 18, 18)
    tensors = pa.table({"k": pa.FixedShapeTensorArray.from_numpy_ndarray(k)})
    mx.Bank(heads=3, key_dim=DIM).ingest(tensors, key="k")
    with pytest.raises(mx.ShapeError, match=r"\[3, 4\].*\[4, 3\]"):
        mx.Bank(heads=4, key_dim=3).ingest(tensors, key="k")


@pytest.mark.parametrize("batch_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("kind", [pa.int8(), pa.uint32(), pa.int64()])
def test_tokens_of_several_rows_keep_their_order_within_each(kind, batch_bytes):
    rng = np.random.default_rng(5)
    k, rows = whole(4, 60, DIM), rng.integers(0, 3, 60)
    table = pa.table(
        {"k": fixed(k), "r": pa.array(rows).cast(kind), "n": pa.array(range(60)), "p": pa.array(range(60))}
    )
    bank = mx.Bank(rows=3, key_dim=DIM)
    batches = iter(table.to_batches(max_chunksize=7))
    report = bank.ingest(batches, key="k", row="r", label="n", position="p", batch_bytes=batch_bytes)
    assert (report.entries, report.version, bank.version) == (60, 1, 1)
    for row in range(3):
        mine = np.flatnonzero(rows == row)
        assert bank.lengths[row, 0] == len(mine)
        hits = bank.search(k[None, mine[:1]][None], len(mine), rows=[row])
        np.testing.assert_array_equal(hits.labels, mine[hits.ids])


def test_rows_that_hold_one_head_make_tokens_across_batches():
    k = whole(6, 2, 3, 11, DIM)
    bank = mx.Bank(rows=2, heads=3, key_dim=DIM)
    bank.write(k, labels=np.arange(22).reshape(2, 11))
    table = pa.table(bank.to_arrow())
    names = {"key": "key", "row": "row", "head": "head", "label": "label"}
    for chunk in (1, 2, 7, 100):
        other = mx.Bank(rows=2, heads=3, key_dim=DIM)
        other.ingest(iter(table.to_batches(max_chunksize=chunk)), batch_bytes=100, **names)
        holds(other, k)
        assert pa.table(other.to_arrow()) == table
    for wrong, row in [(table.slice(1), 0), (table.slice(0, 5), 3), (table.sort_by("head"), 1)]:
        other = mx.Bank(rows=2, heads=3, key_dim=DIM)
        with pytest.raises(mx.ArgumentError, match=rf'"head", row {row}: .*head'):
            other.ingest(wrong, **names)
        assert other.version == len(other) == 0


def test_nulls_are_refused_by_row_or_left_out_and_counted():
    null = np.zeros(9, bool)
    null[[3, 5]] = True
    vectors = pa.table({"k": fixed(K, null), "n": pa.array(range(9))})
    numbers = pa.table({"k": fixed(K), "n": pa.array([None if x else i for i, x in enumerate(null)])})
    structs = pa.StructArray.from_arrays([fixed(K), pa.array(range(9))], ["k", "n"], mask=pa.array(null))
    for source in (vectors, numbers, structs, pa.chunked_array([structs[:4], structs[4:]])):
        bank = mx.Bank(key_dim=DIM)
        with pytest.raises(mx.ArgumentError, match=r"row 3: null.*skip"):
            bank.ingest(source, key="k", label="n")
        report = bank.ingest(source, key="k", label="n", nulls="skip")
        holds(bank, K[~null])
        assert report.skipped == {"null": 2}
        np.testing.assert_array_equal(np.sort(bank.search(K[:1], 7).labels[0]), np.flatnonzero(~null))
    lists = pa.table(
        {"k": pa.array([None if x else k for k, x in zip(K.tolist(), null, strict=True)], pa.list_(pa.float32()))}
    )
    holds(ingested(lists, nulls="skip"), K[~null])
    after = pa.table({"k": fixed(K, null)}).slice(4)
    with pytest.raises(mx.ArgumentError, match="row 1: null"):
        ingested(after)


def test_a_null_inside_a_vector_is_refused_by_row():
    holes = pa.array(K.reshape(-1), mask=np.arange(36) == 6 * DIM + 1)
    vectors = pa.FixedSizeListArray.from_arrays(holes, DIM)
    heads = pa.FixedSizeListArray.from_arrays(fixed(K[:8], np.arange(8) == 5), 2)
    for nulls in ("raise", "skip"):
        with pytest.raises(mx.ArgumentError, match="row 6: null inside"):
            ingested(pa.table({"k": vectors}), nulls=nulls)
        with pytest.raises(mx.ArgumentError, match="row 2: null inside"):
            mx.Bank(heads=2, key_dim=DIM).ingest(pa.table({"k": heads}), key="k", nulls=nulls)


def test_rows_in_messages_are_those_of_the_source():
    bad = K.copy()
    bad[7, 1] = np.inf
    null = np.arange(9) == 2
    for batch_bytes in (1, 40, 1 << 20):
        batches = iter(pa.table({"k": fixed(bad, null)}).to_batches(max_chunksize=4))
        with pytest.raises(mx.NonFinite, match='column "k", row 7'):
            ingested(batches, nulls="skip", batch_bytes=batch_bytes)
    bank = mx.Bank(key_dim=DIM, nonfinite="skip")
    assert bank.ingest(pa.table({"k": fixed(bad)}), key="k").skipped == {"nonfinite": 1}
    large = mx.Bank(key_dim=DIM, key_codec="f16")
    with pytest.raises(mx.NonFinite, match=r"row 4.*f16"):
        large.ingest(pa.table({"k": fixed(np.where(np.arange(9)[:, None] == 4, 1e6, K).astype(np.float32))}), key="k")
    assert len(large) == 0
    rows = pa.table({"k": fixed(K), "r": pa.array([0, 1, 0, 1, 5, 0, 0, 0, 0])})
    with pytest.raises(mx.RowError, match='"r", row 4: row number 5'):
        mx.Bank(rows=2, key_dim=DIM).ingest(rows, key="k", row="r")


@pytest.mark.parametrize(
    ("column", "error", "words"),
    [
        (fixed(K.astype(np.float64)), mx.DtypeError, "float64.*cast"),
        (fixed(K.astype(np.int32)), mx.DtypeError, "int32.*cast"),
        (fixed(K.astype(np.uint16)), mx.DtypeError, "uint16.*mnemex.dtype"),
        (pa.array(range(9)), mx.DtypeError, "expected vectors"),
        (fixed(K[:, :3]), mx.ShapeError, "lists of 3; expected 4"),
        (pa.array([*K[:8].tolist(), [1, 2, 3]], pa.list_(pa.float32())), mx.ShapeError, "row 8: list of 3; expected 4"),
        (fixed(K.reshape(9, 2, 2)), mx.ShapeError, "lists of 2; expected"),
        (pa.array([bytes(16)] * 9, pa.binary(16)), mx.DtypeError, "metadata"),
    ],
)  # fmt: skip
def test_what_is_not_a_vector_column_is_refused_by_name(column, error, words):
    bank = mx.Bank(key_dim=DIM)
    with pytest.raises(error, match=f'column "k".*{words}'):
        bank.ingest(pa.table({"k": column}), key="k")
    assert bank.version == 0


def test_wrong_arguments_are_refused_by_name():
    table = pa.table({"k": fixed(K), "x": pa.array(K[:, 0])})
    wrong = [
        ({"value": "k"}, "value"),
        ({"label": "x"}, '"x" holds float32'),
        ({"label": "gone"}, 'label="gone".*"k", "x"'),
        ({"row": 3}, "row=3"),
        ({"columns": {"other": "x"}}, "other"),
        ({"columns": {"prior": "gone"}}, "gone"),
        ({"nulls": "drop"}, "nulls='drop'"),
        ({"commit": "never"}, "commit='never'"),
        ({"on_duplicate": "merge"}, "on_duplicate='merge'"),
        ({"batch_bytes": 0}, "batch_bytes=0"),
        ({"progress": 3}, "progress=3"),
        ({"threads": 0}, "threads=0"),
    ]
    bank = mx.Bank(key_dim=DIM, columns={"prior": "float32"})
    for how, words in wrong:
        with pytest.raises(mx.Error, match=words):
            bank.ingest(table, **{"key": "k", **how})
    for source in (None, 3, K, [table, 3], fixed(K), [[table]], "", "gone.parquet", "/"):
        with pytest.raises(mx.Error):
            bank.ingest(source, key="k")
    with pytest.raises(mx.ArgumentError, match="row= is missing"):
        mx.Bank(rows=2, key_dim=DIM).ingest(table, key="k")
    with pytest.raises(mx.ArgumentError, match="value= is missing"):
        mx.Bank(key_dim=DIM, value_dim=2).ingest(table, key="k")
    with pytest.raises(mx.ArgumentError, match="names two columns"):
        bank.ingest(pa.table([fixed(K), fixed(K)], names=["k", "k"]), key="k")
    half = ingested(pa.table({"k": fixed(K.astype(np.float16))}))
    with pytest.raises(mx.DtypeError, match="rows 0 to 8: keys are float32"):
        half.ingest(table, key="k")
    assert (bank.version, len(bank), len(half)) == (0, 0, 9)


def short_items(array):
    array.children[0].contents.children[0].contents.length = 3


def long_table(array):
    array.length = 1000


def no_children(array):
    array.n_children = 0


def negative_length(array):
    array.length = -5


@pytest.mark.parametrize("breaking", [short_items, long_table, no_children, negative_length])
def test_c_structures_that_do_not_fit_together_are_refused(breaking):
    with pytest.raises(mx.Error, match=r"fit together|source"):
        ingested(Broken(pa.RecordBatch.from_arrays([fixed(K)], ["k"]), breaking))


@pytest.mark.parametrize("ends", [[0, 4, 8, 400], [16, 20, 24, 28], [-4, 0, 4, 8], [8, 4, 0, 4]])
def test_offsets_that_lead_outside_are_refused(ends):
    offsets = np.array([0, 4, 8, 12], np.int32)
    lists = pa.Array.from_buffers(
        pa.list_(pa.float32()), 3, [None, pa.py_buffer(offsets)], children=[pa.array(K[:3].reshape(-1))]
    )
    table = pa.table({"k": lists})
    offsets[:] = ends
    with pytest.raises(mx.FormatError, match="source"):
        ingested(table)
    keys = pa.DictionaryArray.from_arrays(pa.array([0, 9], pa.int8()), fixed(K[:2]), safe=False)
    with pytest.raises(mx.FormatError, match="source"):
        ingested(pa.table({"k": keys}))
