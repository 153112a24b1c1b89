"""What banks and snapshots answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mnemex import _arguments as arguments
from mnemex._arrays import vectors
from mnemex.arrow import ArrowTable
from mnemex.errors import ArgumentError, IdError, ShapeError
from mnemex.results import Hits, Partial

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from mnemex._arrays import ArrayLike, IntsLike
    from mnemex._native import NativeSnapshot

ANSWER_LIMIT = 2**31


class Reads:
    """Reads of one version: whatever is written meanwhile, a call sees one state from start to end."""

    _config: tuple[int, int, int | None, bool, int | None, str, str, str]
    _threads: int | None

    def _native_snapshot(self) -> NativeSnapshot:
        raise NotImplementedError

    def _describe(
        self, config: tuple[int, int, int | None, bool, int | None, str, str, str], threads: int | None
    ) -> None:
        self._config, self._threads = config, threads

    def _adopt(self, other: Reads) -> None:
        self._describe(other._config, other._threads)

    def _threads_of(self, threads: int | None) -> int | None:
        return self._threads if threads is None else arguments.count("threads", threads)

    # ------------------------------------------------------------------ what it is

    @property
    def rows(self) -> int:
        """Rows."""
        return self._native_snapshot().rows

    @property
    def heads(self) -> int:
        """Key/value heads."""
        return self._config[0]

    @property
    def key_dim(self) -> int:
        """Numbers per key."""
        return self._config[1]

    @property
    def value_dim(self) -> int | None:
        """Numbers per value; None without values."""
        return self._config[1] if self._config[3] else self._config[2]

    @property
    def capacity(self) -> int | None:
        """Live entries per lane at most."""
        return self._config[4]

    @property
    def metric(self) -> str:
        """What entries are ranked by."""
        return self._config[5]

    @property
    def version(self) -> int:
        """Number of the version; ascending."""
        return self._native_snapshot().version

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Live entries, int64 `[rows, heads]`."""
        return self._native_snapshot().lengths()

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def __repr__(self) -> str:
        native = self._native_snapshot()
        key, value = (codec or "auto" for codec in native.codecs)
        values = "" if self.value_dim is None else f", value_dim={'key' if self._config[3] else self.value_dim}"
        stored = key if self._config[2] is None else f"{key} keys, {value} values"
        return (
            f"<{type(self).__name__}: {len(self)} entries, rows={native.rows}, heads={self.heads}, "
            f"key_dim={self.key_dim}{values}, metric={self.metric}, {stored}, {native.nbytes:,} bytes>"
        )

    @property
    def _one_lane(self) -> bool:
        return self.heads == 1 and self.rows == 1

    # ------------------------------------------------------------------ reads

    def search(
        self,
        queries: ArrayLike,
        k: int,
        *,
        rows: IntsLike | None = None,
        before: IntsLike | None = None,
        where: IntsLike | None = None,
        nonfinite: str | None = None,
        threads: int | None = None,
    ) -> Hits:
        """Find the `k` best entries of each query, exactly: larger score first, then the smaller id.

        Scores are the float64 sums of the documented order, rounded once to float32: the same bits on every machine,
        for every thread count.

        Parameters
        ----------
        queries
            `[rows, query_heads, T, key_dim]` (`[T, key_dim]` for one lane); query head h reads key/value head
            h // (query_heads // heads).
        k
            Hits per query; more than the lane holds gives padding.
        rows
            Bank row of each query row; None: all. A bank with one row answers any number of query rows.
        before
            int64 `[rows, T]`: query t of row r sees only ids below `before[r, t]`.
        where
            Only these ids are seen: a list of ids, or a bitmap by id, `[n]` for all or `[rows, n]` for each query row.
        nonfinite
            For this call, instead of the bank's: "keep" lets queries hold NaN or infinity.
        threads
            For this call, instead of the bank's.

        Raises
        ------
        ShapeError, DtypeError, RowError, NonFinite, ArgumentError
            A wrong argument, or an answer of more than 2**31 entries.
        """
        k = arguments.count("k", k)
        query, flat, at, seen = self._query(queries, rows, before)
        if k > ANSWER_LIMIT:
            raise ArgumentError(f"k={k} makes an answer of more than 2**31 entries: ask for less")
        native = self._native_snapshot()
        found = native.search(
            query, k, at, seen, arguments.bitmap(where, native.id_end), nonfinite, self._threads_of(threads)
        )
        return _hits(found, flat=flat)

    def attend(
        self,
        queries: ArrayLike,
        k: int | None,
        *,
        rows: IntsLike | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        before: IntsLike | None = None,
        where: IntsLike | None = None,
        hits: bool = False,
        nonfinite: str | None = None,
        threads: int | None = None,
    ) -> Partial:
        """Attend to exactly the entries that `search` finds; None: to every entry.

        logit = scale * score, then softcap * tanh(logit / softcap); weights are the softmax of the logits.

        Parameters
        ----------
        queries, rows, before, where, nonfinite, threads
            As for `search`; a query that holds NaN or infinity, where it is let through, gives NaN.
        k
            Entries per query, clamped to the longest lane.
        scale
            None: key_dim ** -0.5.
        softcap
            None: logits are not bent.
        hits
            Also report what was attended.

        Raises
        ------
        StateError
            The bank stores no values.
        ShapeError, DtypeError, RowError, NonFinite, ArgumentError
            A wrong argument.
        """
        k = arguments.optional_count("k", k)
        scale = self.key_dim**-0.5 if scale is None else arguments.real("scale", scale)
        softcap = None if softcap is None else arguments.real("softcap", softcap, positive=True)
        query, flat, at, seen = self._query(queries, rows, before)
        native, threads = self._native_snapshot(), self._threads_of(threads)
        allowed = arguments.bitmap(where, native.id_end)
        out, lse, found = native.attend(query, k, at, scale, softcap, seen, allowed, hits, nonfinite, threads)
        if flat:
            out, lse = out[0, 0], lse[0, 0]
        if found is None:
            return Partial(out, lse)
        mass = found[1][0, 0] if flat else found[1]
        return Partial(out, lse, _hits(found[0], flat=flat), mass)

    def gather(
        self,
        wanted: Hits | IntsLike,
        rows: IntsLike | None = None,
        *,
        threads: int | None = None,
    ) -> tuple[NDArray[np.float32] | NDArray[np.float16], NDArray[np.float32] | NDArray[np.float16] | None]:
        """Read stored keys and values.

        Parameters
        ----------
        wanted
            Hits: the result has their shape and dim, zeros at padding. Or ids `[rows, n]`, giving `[rows, heads, n,
            dim]`; `[n]` for a bank of one lane, giving `[n, dim]`.
        rows
            Bank row of each row of ids; None: all.

        Returns
        -------
        keys, values
            float32, or float16 from a bank of float16; values are None where the bank has none.

        Raises
        ------
        IdError
            An id that is not there.
        """
        native = self._native_snapshot()
        if isinstance(wanted, Hits):
            ids = wanted.ids if wanted.ids.ndim > 2 else wanted.ids[None, None]
            shape, bank_rows = wanted.ids.shape, wanted.rows
            if ids.shape[1] % self.heads or ids.shape[0] != len(bank_rows) or (bank_rows >= native.rows).any():
                raise ShapeError(
                    f"hits of shape {shape} do not come from this bank of {native.rows} rows, {self.heads} heads"
                )
            heads = np.arange(ids.shape[1], dtype=np.int64) // (ids.shape[1] // self.heads)
        else:
            ids = arguments.ints("ids", wanted)
            one = ids.ndim == 1 and self._one_lane
            ids = ids[None] if one else ids
            if ids.ndim != 2:
                raise ShapeError(f"ids have shape {ids.shape}; expected [rows, n], or [n] of a bank of one lane")
            if (ids < 0).any():
                raise IdError(f"ids name {int(ids.min())}; ids are 0 and up")
            named = arguments.rows("rows", rows, native.rows)
            bank_rows = np.arange(native.rows, dtype=np.int64) if named is None else named
            if len(bank_rows) != len(ids):
                raise ShapeError(f"ids have {len(ids)} rows; expected {len(bank_rows)}, one for each bank row read")
            heads = np.arange(self.heads, dtype=np.int64)
            ids = np.broadcast_to(ids[:, None], (len(ids), self.heads, ids.shape[1]))
            shape = ids.shape[2:] if one else ids.shape
        place_rows, place_heads = (
            np.broadcast_to(bank_rows[:, None], ids.shape[:2]),
            np.broadcast_to(heads, ids.shape[:2]),
        )
        each = int(np.prod(ids.shape[2:]))
        flat_rows, flat_heads = (np.repeat(x.reshape(-1), each) for x in (place_rows, place_heads))
        keys, values = native.gather(
            flat_rows, flat_heads, np.ascontiguousarray(ids).reshape(-1), self._threads_of(threads)
        )
        return _vectors(keys, shape), None if values is None else _vectors(values, shape)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Save as a folder of Arrow IPC files and a manifest, atomically; `mnemex.open` reads it back.

        Raises
        ------
        ExistsError
            Something is at the path, and `overwrite` is False.
        FormatError
            The path cannot be written.
        """
        from mnemex.files import save_banks

        save_banks(path, "bank", [self._native_snapshot()], {}, overwrite=overwrite)

    def to_arrow(self) -> ArrowTable:
        """Give the live entries as an Arrow table: `pyarrow.table(bank.to_arrow())`, `polars.DataFrame(...)`, duckdb.

        Needs no pyarrow, makes no second copy, and holds the version of this moment.

        Returns
        -------
        table
            One table row per entry and head: row after row, ids ascending, the heads of an id together. Columns `row`,
            `head` (int32), `id`, `label`, `position` (int64), `key` and, where the bank has them, `value`: fixed-size
            lists of float32 or float16; bfloat16 stands as uint16 with the field metadata `mnemex.dtype`. `ingest`
            reads it back: with `head="head"` where the bank has several heads.
        """
        return ArrowTable(self._native_snapshot())

    def _query(
        self, queries: ArrayLike, rows: IntsLike | None, before: IntsLike | None
    ) -> tuple[tuple[NDArray[np.generic], str], bool, NDArray[np.int64] | None, NDArray[np.int64] | None]:
        query = vectors("queries", queries, one_lane=self._one_lane)
        shape = (query[0].shape[0], query[0].shape[2])
        seen = arguments.side("before", before, shape, np.int64, one_lane=self._one_lane)
        flat = self._one_lane and len(queries.shape) == 2
        return query, flat, arguments.rows("rows", rows, self.rows), seen  # type: ignore[return-value]


def _hits(
    found: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.int64]], *, flat: bool
) -> Hits:
    scores, ids, labels, rows = found
    if flat:
        scores, ids, labels = scores[0, 0], ids[0, 0], None if labels is None else labels[0, 0]
    return Hits(scores, ids, rows, labels)


def _vectors(x: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.float32] | NDArray[np.float16]:
    numbers = x.view(np.float16) if x.dtype == np.uint16 else x
    return numbers.reshape(*shape, x.shape[-1])  # type: ignore[return-value]
