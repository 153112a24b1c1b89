"""An ingest as a whole: batches, all or nothing, interruption, progress, files."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mnemex as mx
from arrow_forms import DIM, fixed, holds, ingested, whole

K = whole(1, 40, DIM)
TABLE = pa.table({"k": fixed(K)})
ROW_BYTES = 4 * DIM


@pytest.mark.parametrize(("chunk", "rows", "batches"), [(40, 10, 4), (1, 10, 4), (7, 10, 4), (40, 100, 1), (40, 1, 40)])
def test_batches_are_counted_in_bytes_whatever_the_chunks(chunk, rows, batches):
    bank = mx.Bank(key_dim=DIM)
    seen = []
    report = bank.ingest(
        iter(TABLE.to_batches(max_chunksize=chunk)), key="k", batch_bytes=rows * ROW_BYTES, progress=seen.append
    )
    holds(bank, K)
    assert (report.batches, report.bytes, report.rows, report.files) == (batches, 40 * ROW_BYTES, 40, ())
    assert [r.rows for r in seen[: 40 // rows]] == [rows * (i + 1) for i in range(40 // rows)]
    assert seen[-1].entries == report.entries == 40
    assert "40 entries from 40 rows" in repr(report)
    assert "version 1" in repr(report)
    assert report.rate > 0


@pytest.fixture(autouse=True)
def heard():
    """Hear Ctrl-C, which a process that was started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def failing(after):
    """Batches of ten rows, and an error where the next is due."""
    yield from TABLE.to_batches(max_chunksize=10)[:after]
    raise RuntimeError("the disk is gone")


def interrupting(after):
    """Batches of ten rows, and a Ctrl-C where the next is due."""
    yield from TABLE.to_batches(max_chunksize=10)[:after]
    signal.raise_signal(signal.SIGINT)
    yield from TABLE.to_batches(max_chunksize=10)[after:]


def stop(report):
    if report.rows >= 20:
        signal.raise_signal(signal.SIGINT)


def reader(batches):
    return pa.RecordBatchReader.from_batches(TABLE.schema, batches)


@pytest.mark.parametrize("commit", ["end", "batch"])
@pytest.mark.parametrize(
    ("source", "how", "error"),
    [
        (lambda: failing(2), {}, RuntimeError),
        (lambda: reader(failing(2)), {}, mx.FormatError),
        (lambda: interrupting(2), {}, KeyboardInterrupt),
        (lambda: reader(interrupting(2)), {}, KeyboardInterrupt),
        (lambda: TABLE, {"progress": stop}, KeyboardInterrupt),
    ],
)
def test_what_breaks_off_leaves_nothing_or_the_committed_batches(commit, source, how, error):
    bank = mx.Bank(key_dim=DIM)
    bank.write(K[:3])
    with pytest.raises(error):
        bank.ingest(source(), key="k", commit=commit, batch_bytes=10 * ROW_BYTES, **how)
    holds(bank, K[:3] if commit == "end" else np.concatenate([K[:3], K[:20]]))
    assert bank.version == (1 if commit == "end" else 3)
    bank.ingest(TABLE, key="k")
    assert len(bank) == (43 if commit == "end" else 63)


def test_readers_see_all_or_nothing_and_batch_by_batch():
    for commit, seen in (("end", [0, 0, 0, 0]), ("batch", [10, 20, 30, 40])):
        bank = mx.Bank(key_dim=DIM)
        lengths = []
        how = {"commit": commit, "batch_bytes": 10 * ROW_BYTES}
        bank.ingest(TABLE, key="k", progress=lambda _, b=bank, n=lengths: n.append(len(b)), **how)
        assert lengths[:4] == seen
        assert bank.version == (1 if commit == "end" else 4)


def test_a_bank_with_staged_tokens_is_refused():
    bank = mx.Bank(key_dim=DIM)
    bank.stage(K[:2])
    with pytest.raises(mx.StateError, match="staged"):
        bank.ingest(TABLE, key="k")
    bank.commit()
    holds(bank, K[:2])


@pytest.mark.parametrize("change", [lambda bank: bank.write(K[:1]), lambda bank: bank.stage(K[:1])])
def test_what_others_wrote_meanwhile_stands_and_the_ingest_is_refused(change):
    bank = mx.Bank(key_dim=DIM)
    with pytest.raises(mx.StateError, match="meanwhile"):
        bank.ingest(TABLE, key="k", batch_bytes=200, progress=lambda report: report.rows > 20 or change(bank))
    bank.commit()
    assert len(bank) > 0
    np.testing.assert_array_equal(bank.gather([0])[0], K[:1])


def test_capacity_and_eviction_hold_on_the_way():
    for rows in (1, 3, 100):
        bank = mx.Bank(key_dim=DIM, capacity=7)
        report = bank.ingest(TABLE, key="k", batch_bytes=rows * ROW_BYTES)
        np.testing.assert_array_equal(bank.gather(np.arange(33, 40))[0], K[33:])
        assert (report.evicted, len(bank)) == (33, 7)
    full = mx.Bank(key_dim=DIM, capacity=39, evict="error")
    with pytest.raises(mx.CapacityError, match="capacity of 39"):
        full.ingest(TABLE, key="k", batch_bytes=ROW_BYTES)
    assert len(full) == full.version == 0


def test_nothing_makes_no_version():
    bank = mx.Bank(key_dim=DIM)
    report = bank.ingest(TABLE.slice(0, 0), key="k")
    assert (report.entries, report.batches, report.version, bank.version) == (0, 0, 0, 0)
    report = bank.ingest(iter([]), key="k")
    assert report.rows == 0


def test_files_are_told_apart_and_named_in_messages(tmp_path):
    pq.write_table(TABLE.slice(0, 15).append_column("x", pa.array(range(15))), tmp_path / "a.parquet", row_group_size=4)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as f, pa.ipc.new_file(f, TABLE.schema) as out:
        out.write_table(TABLE.slice(15, 15), max_chunksize=4)
    with pa.OSFile(str(tmp_path / "c.stream"), "wb") as f, pa.ipc.new_stream(f, TABLE.schema) as out:
        out.write_table(TABLE.slice(30), max_chunksize=4)
    bank = mx.Bank(key_dim=DIM)
    report = bank.ingest(tmp_path / "*", key="k", batch_bytes=6 * ROW_BYTES)
    holds(bank, K)
    assert [Path(file).name for file in report.files] == ["a.parquet", "b.arrow", "c.stream"]
    assert "3 files" in repr(report)
    parts = [str(tmp_path / "a.parquet"), TABLE.slice(15)]
    holds(ingested(parts), K)
    bad = K.copy()
    bad[8, 0] = np.nan
    pq.write_table(pa.table({"k": fixed(bad)}), tmp_path / "d.parquet", row_group_size=3)
    with pytest.raises(mx.NonFinite, match=r'd\.parquet, column "k", row 8'):
        ingested([tmp_path / "a.parquet", tmp_path / "d.parquet"])
    with pytest.raises(mx.ArgumentError, match=r'a\.parquet, key="gone".*"k", "x"'):
        mx.Bank(key_dim=DIM).ingest(tmp_path / "a.parquet", key="gone")
    (tmp_path / "e.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "f").write_bytes(b"neither")
    for name in ("e.parquet", "f"):
        with pytest.raises(mx.FormatError, match=name):
            ingested(tmp_path / name)
    with pytest.raises(mx.ArgumentError, match="folder"):
        ingested(tmp_path)
    with pytest.raises(mx.NotFoundError, match="gone"):
        ingested(tmp_path / "gone-*.parquet")


def test_a_save_is_a_source_too(tmp_path):
    bank = ingested(TABLE)
    bank.save(tmp_path / "saved")
    other = mx.Bank(key_dim=DIM)
    other.ingest(tmp_path / "saved" / "bank-0.arrow", key="key")
    holds(other, K)


def test_tables_need_no_pyarrow_and_files_say_that_they_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    bank = mx.Bank(key_dim=DIM)
    bank.write(K)
    holds(ingested_key(bank.to_arrow()), K)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(mx.MissingDependency, match="pyarrow"):
        ingested(tmp_path / "x.parquet")


def ingested_key(source):
    bank = mx.Bank(key_dim=DIM)
    bank.ingest(source, key="key")
    return bank


def test_a_progress_bar_needs_rich(monkeypatch, capsys):
    if find_spec("rich"):
        holds(ingested(TABLE, progress=True), K)
        assert "40 rows" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(mx.MissingDependency, match="rich"):
        ingested(TABLE, progress=True)


def test_the_total_is_that_of_all_sources_or_unknown(tmp_path):
    for i in range(3):
        pq.write_table(TABLE, tmp_path / f"{i}.parquet")
    everything = str(tmp_path / "*.parquet")
    cases = (
        (TABLE, 40),
        (everything, 120),
        ([everything, TABLE], 160),
        ([TABLE, reader(TABLE.to_batches()), TABLE], None),
        (iter([TABLE, TABLE]), None),
    )
    for source, total in cases:
        totals = []
        how = {"batch_bytes": 10 * ROW_BYTES, "progress": lambda report, t=totals: t.append(report.total_rows)}
        mx.Bank(key_dim=DIM).ingest(source, key="k", **how)
        assert set(totals) == {total}


def test_a_parquet_file_is_not_held_whole(tmp_path):
    keys = whole(1, 240_000, 64)
    pq.write_table(pa.table({"k": fixed(keys)}), tmp_path / "a.parquet", row_group_size=5_000)
    held = []
    before = pa.total_allocated_bytes()
    bank = mx.Bank(key_dim=64)
    progress = {"batch_bytes": 1 << 20, "progress": lambda _: held.append(pa.total_allocated_bytes() - before)}
    bank.ingest(tmp_path / "a.parquet", key="k", **progress)
    assert len(bank) == 240_000
    assert max(held) < keys.nbytes / 12
