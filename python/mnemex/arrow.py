"""A version of a bank as an Arrow table that is made while it is read."""

from __future__ import annotations

from mnemex._native import NativeSnapshot, stream, stream_schema


class ArrowTable:
    """The live entries of one version, for any reader of an Arrow C stream: pyarrow, polars, duckdb.

    May be read any number of times, from any thread; what is written to the bank meanwhile is not in it. Batches are
    made one by one, so that no second copy of the bank comes to be unless the reader keeps one.
    """

    __slots__ = ("_snapshot",)

    def __init__(self, snapshot: NativeSnapshot) -> None:
        self._snapshot = snapshot

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Start reading: a capsule with an Arrow C stream."""
        return stream(self._snapshot, requested_schema)

    def __arrow_c_schema__(self) -> object:
        """Describe the columns: a capsule with an Arrow C schema."""
        return stream_schema(self._snapshot)

    def __len__(self) -> int:
        return int(self._snapshot.lengths().sum())

    def __repr__(self) -> str:
        return f"<ArrowTable: {len(self):,} rows, one per entry and head; pyarrow.table(...) reads it>"
