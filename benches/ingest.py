"""How much memory an ingest takes beside the bank that it fills, and how fast it is.

`python -m benches.ingest` sends 4 GB of float16 keys through a budget of 64 MiB, from a stream of batches, a Parquet
file and an Arrow file, each in a process of its own, and prints one JSON line for each: the largest resident memory of
the whole process, less the bank's bytes, should stay below 400 MB however much goes through.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

import mnemex as mx

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIM = 128
ROW_BYTES = 2 * DIM
BATCH_ROWS = 1 << 16
SOURCES = ("stream", "parquet", "arrow")
BOUND_MB = 400


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each source; 1 where the bound is passed."""
    parser = argparse.ArgumentParser(prog="python -m benches.ingest", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of float16 keys; the bank takes as much memory")
    parser.add_argument("--source", choices=SOURCES, help="only this one")
    options = parser.parse_args(arguments)
    rows = max(1, int(options.gigabytes * 1e9 / ROW_BYTES))
    passed = False
    for source in [options.source] if options.source else SOURCES:
        with tempfile.TemporaryDirectory(prefix="mnemex-bench-") as folder:
            path = Path(folder) / source
            if source != "stream":
                _in_a_process(_write, source, path, rows)
            found = _in_a_process(_measure, source, path, rows)
        passed |= found["beside the bank, MB"] > BOUND_MB
        print(json.dumps(found), flush=True)
    return int(passed)


def _in_a_process(call: Any, *arguments: object) -> Any:  # noqa: ANN401 - what the call returns
    """Call in a new process, of which the memory is that of the call alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def _batches(rows: int) -> Iterator[pa.RecordBatch]:
    """Make batches one by one; nobody keeps them."""
    generator = np.random.default_rng(20_261_124)
    for first in range(0, rows, BATCH_ROWS):
        n = min(BATCH_ROWS, rows - first)
        numbers = generator.standard_normal(n * DIM, np.float32).astype(np.float16)
        yield pa.RecordBatch.from_arrays([pa.FixedSizeListArray.from_arrays(pa.array(numbers), DIM)], ["key"])


def _schema() -> pa.Schema:
    return pa.schema([("key", pa.list_(pa.float16(), DIM))])


def _write(source: str, path: Path, rows: int) -> None:
    writer = pq.ParquetWriter(path, _schema()) if source == "parquet" else pa.ipc.new_file(str(path), _schema())
    with writer:
        for batch in _batches(rows):
            writer.write_batch(batch)


def _measure(source: str, path: Path, rows: int) -> dict[str, str | float]:
    before = _peak_mb()
    bank = mx.Bank(key_dim=DIM)
    stream = pa.RecordBatchReader.from_batches(_schema(), _batches(rows)) if source == "stream" else path
    report = bank.ingest(stream, key="key")
    if len(bank) != rows:
        raise RuntimeError(f"{len(bank)} entries came of {rows} rows")
    peak = _peak_mb()
    return {
        "source": source,
        "vectors, MB": report.bytes / 1e6,
        "bank, MB": bank.nbytes / 1e6,
        "before, MB": before,
        "peak, MB": peak,
        "beside the bank, MB": round(peak - bank.nbytes / 1e6, 1),
        "MB/s": round(report.rate / 1e6, 1),
    }


def _peak_mb() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


if __name__ == "__main__":
    sys.exit(main())
