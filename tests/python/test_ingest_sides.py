"""What an ingest takes beside vectors: the bank's own columns, and labels that are there already."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mnemex as mx
from arrow_forms import DIM, fixed, whole

N = 300
K = whole(1, N, DIM)
COLUMNS = {"page": "int64", "trust": "float32", "seen": "bool"}
PAGE = np.arange(N) * 3
TRUST = np.linspace(-1, 1, N, dtype=np.float32)
SEEN = np.arange(N) % 3 == 0
NAMES = {"page": "p", "trust": "t", "seen": "s"}


def table(**other) -> pa.Table:
    return pa.table({"k": fixed(K), "p": PAGE, "t": TRUST, "s": SEEN, **other})


@pytest.mark.parametrize("batch_rows", [1, 7, N])
def test_columns_go_in_and_come_out(batch_rows):
    bank, again = (mx.Bank(key_dim=DIM, columns=COLUMNS) for _ in range(2))
    bank.ingest(table().slice(5, N - 9), key="k", columns=NAMES, batch_bytes=batch_rows * 4 * DIM)
    again.ingest(bank.to_arrow(), key="key", columns={name: name for name in COLUMNS})
    for filled in (bank, again):
        _, _, got = filled.gather(np.arange(N - 9), columns=tuple(COLUMNS))
        for name, want in zip(COLUMNS, (PAGE, TRUST, SEEN), strict=True):
            np.testing.assert_array_equal(got[name], want[5 : N - 4])
    assert bank.find(where=[("page", ">=", 30), ("seen", "==", True)])[0].tolist() == [
        i - 5 for i in range(10, N - 4) if SEEN[i]
    ]


def test_narrower_numbers_widen_and_others_are_refused_by_name():
    bank = mx.Bank(key_dim=DIM, columns=COLUMNS)
    narrow = table(p=PAGE.astype(np.int16), t=TRUST.astype(np.float16))
    bank.ingest(narrow, key="k", columns=NAMES)
    _, _, got = bank.gather(np.arange(N), columns=("page", "trust"))
    np.testing.assert_array_equal(got["page"], PAGE)
    np.testing.assert_array_equal(got["trust"], TRUST.astype(np.float16).astype(np.float32))
    for columns, words in (
        ({"page": "t"}, "page"),
        ({"trust": "p"}, "trust"),
        ({"nowhere": "p"}, "nowhere"),
        ({"page": "absent"}, "absent"),
        ({"label": "p"}, "label"),
    ):
        before = bank.version
        with pytest.raises(mx.Error, match=words):
            bank.ingest(table(), key="k", columns=columns)
        assert bank.version == before


@pytest.mark.parametrize("batch_rows", [1, 32, N])
def test_labels_that_are_there_are_refused_skipped_or_replaced(batch_rows):
    labels = np.arange(N) // 2  # each twice in a row
    how = {"key": "k", "label": "l", "batch_bytes": batch_rows * 4 * DIM}
    bank = mx.Bank(key_dim=DIM)
    with pytest.raises(mx.ArgumentError, match="label 0"):
        bank.ingest(table(l=labels), on_duplicate="raise", **how)
    assert len(bank) == 0
    report = bank.ingest(table(l=labels), on_duplicate="skip", **how)
    assert (report.entries, report.skipped, report.rows) == (N // 2, {"duplicate": N // 2}, N)
    np.testing.assert_array_equal(bank.gather(np.arange(N // 2))[0], K[::2])
    bank.ingest(table(l=labels), on_duplicate="replace", **how)
    assert len(bank) == N // 2
    assert [ids.size for ids in (bank.find(labels=[3])[0], bank.find()[0])] == [1, N // 2]


def test_tokens_are_skipped_for_one_reason_each():
    keys = K.copy()
    keys[..., 4:6, 0] = np.nan
    bank = mx.Bank(key_dim=DIM, nonfinite="skip")
    labels = np.where(np.arange(N) < 8, 1, np.arange(N))
    report = bank.ingest(pa.table({"k": fixed(keys), "l": labels}), key="k", label="l", on_duplicate="skip")
    assert report.skipped == {"nonfinite": 2, "duplicate": 5}
    assert report.entries == len(bank) == N - 7


def test_heads_may_share_nan_and_a_difference_is_named_by_column_and_row():
    bank = mx.Bank(heads=2, key_dim=DIM, columns={"trust": "float32"})
    keys = np.stack([K[:3], K[3:6]])[None]
    bank.write(keys, columns={"trust": np.array([[0, np.nan, 1]], np.float32)})
    again = mx.Bank(heads=2, key_dim=DIM, columns={"trust": "float32"})
    how = {"key": "key", "head": "head", "label": "label", "columns": {"trust": "trust"}}
    again.ingest(bank.to_arrow(), **how)
    assert (
        pa.table(again.to_arrow())["trust"].to_numpy().tobytes()
        == np.repeat(np.array([0, np.nan, 1], np.float32), 2).tobytes()
    )
    table = pa.table(bank.to_arrow())
    for name, other in (("trust", pa.array([0, 0, 1, 1, 2, 3], pa.float32())), ("label", pa.array([0, 0, 1, 1, 2, 3]))):
        broken = table.set_column(table.column_names.index(name), name, other).rename_columns(
            [f"my {n}" if n == name else n for n in table.column_names]
        )
        mine = {**how, "columns": {"trust": "my trust"}} if name == "trust" else {**how, "label": "my label"}
        with pytest.raises(mx.ArgumentError, match=f'column "my {name}", row 5: differs'):
            again.ingest(broken, **mine)


@pytest.mark.parametrize("columns", [["f"], "f", [("f", "f", 3)], 5, {"f": None}, {None: "f"}, {"f": "\ud800"}])
def test_columns_that_are_no_names_are_refused(columns):
    bank = mx.Bank(key_dim=DIM, columns={"f": "float32"})
    with pytest.raises(mx.Error, match="columns="):
        bank.ingest(table(), key="k", columns=columns)


def test_text_that_is_none_and_classes_are_refused():
    bank = mx.Bank(key_dim=DIM)
    with pytest.raises(mx.ArgumentError, match="key="):
        bank.ingest(table(), key="\ud800")
    with pytest.raises(mx.DtypeError, match="source is the class Table"):
        bank.ingest(pa.Table, key="k")


def test_what_is_no_arrow_structure_is_refused_and_what_a_source_raises_comes_through():
    class Source:
        def __init__(self, answer):
            self.answer = answer

        def __arrow_c_stream__(self, requested_schema=None):
            return self.answer()

    def raising():
        raise ValueError("mine")

    bank = mx.Bank(key_dim=DIM)
    for answer in (lambda: 5, lambda: fixed(K).__arrow_c_array__()[0]):
        with pytest.raises(mx.FormatError, match="do not fit together"):
            bank.ingest(Source(answer), key="k")
    with pytest.raises(ValueError, match="mine"):
        bank.ingest(Source(raising), key="k")


@pytest.mark.parametrize("batch_rows", [4, N])
def test_a_label_that_is_there_is_named_by_column_and_table_row(batch_rows, tmp_path):
    """Rows of the table go to two rows of the bank in turn, so a token's number is not that of its table row."""
    labels = np.arange(N)
    labels[40] = 6
    path = tmp_path / "labels.parquet"
    pq.write_table(table(r=np.arange(N) % 2, l=labels), path)
    bank = mx.Bank(rows=2, key_dim=DIM)
    given = {"key": "k", "row": "r", "label": "l", "on_duplicate": "raise", "batch_bytes": batch_rows * 4 * DIM}
    other = "that of row 6 too" if batch_rows == N else "that of an entry in row 0 of the bank too"
    with pytest.raises(mx.ArgumentError, match=f'labels.parquet, column "l", row 40: label 6 is {other}'):
        bank.ingest(path, **given)
    assert bank.version == 0


def test_a_column_of_another_type_is_named_as_the_table_names_it():
    bank = mx.Bank(key_dim=DIM, columns=COLUMNS)
    for n in (0, N):  # found in the schema, before any row
        with pytest.raises(
            mx.DtypeError, match='column "p" holds int64; the bank\'s column "trust" is float32: cast it'
        ):
            bank.ingest(table().slice(0, n), key="k", columns={"trust": "p"})
