"""What banks and snapshots answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from mnemex import _arguments as arguments
from mnemex import _entries, _where, parts
from mnemex._arrays import is_flat, vectors
from mnemex.arrow import ArrowTable
from mnemex.errors import ArgumentError, DtypeError, ShapeError, StateError, Unsupported
from mnemex.facts import Facts
from mnemex.results import Hits, Partial

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mnemex._arrays import ArrayLike, IntsLike
    from mnemex._entries import Columns, Vectors
    from mnemex._where import Where
    from mnemex.parts import Reader

ANSWER_LIMIT = 2**31


class Reads(Facts):
    """Reads of one version: whatever is written meanwhile, a call sees one state from start to end."""

    def search(
        self,
        queries: ArrayLike,
        k: int | Reader,
        *,
        rows: IntsLike | None = None,
        before: IntsLike | None = None,
        where: Where | None = None,
        effort: float | Mapping[str, int] | None = None,
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
            Hits per query; more than the lane holds gives padding. Or a reader: `mnemex.TopK`, `Threshold`, `Window`,
            `Blocks`.
        rows
            Bank row of each query row; None: all. A bank with one row answers any number of query rows.
        before
            int64 `[rows, T]`: query t of row r sees only ids below `before[r, t]`.
        where
            What is seen. A list of ids: those that are not there are passed over. An empty list is a list of no
            ids and shows nothing; for no condition give None. A bitmap
            by id, `[n]` for all or `[rows, n]` for each query row. Or a condition `(column, op, value)`, or a list of
            such, all of which must hold: columns are "id", "label", "position" and the bank's own, ops
            `< <= > >= == !=`, and `in` for a list. Integer columns are compared exactly, with floats too. What a
            float32 column is compared with is rounded to float32 first, so that a stored 0.1 equals 0.1. NaN is
            unequal to everything. Bools take `== != in`.
        effort
            Share of the entries to look at, in (0, 1], or a dict of an index's units; None: the index's own. A flat
            index is exact: it looks at every entry whatever the share, and has no units.
        nonfinite
            For this call, instead of the bank's: "keep" lets queries hold NaN or infinity.
        threads
            For this call, instead of the bank's.

        Raises
        ------
        ShapeError, DtypeError, RowError, NonFinite, ArgumentError
            A wrong argument, or an answer of more than 2**31 entries.
        """
        arguments.effort(effort)
        reader, nonfinite = parts.reader(k), arguments.nonfinite(nonfinite)
        query, flat, at, seen = self._query(queries, rows, before)
        if reader[0] * (1 + reader[2] + reader[3]) > ANSWER_LIMIT:
            raise ArgumentError(f"k={k} makes an answer of more than 2**31 entries: ask for less")
        allowed, conditions = _where.parse(where)
        native, threads = self._native_snapshot(), self._threads_of(threads)
        found = native.search(query, reader, at, seen, allowed, conditions, nonfinite, threads)
        return _hits(found, flat=flat)

    def attend(
        self,
        queries: ArrayLike,
        k: int | Reader | None,
        *,
        rows: IntsLike | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        bias: str | IntsLike | list[float] | None = None,
        before: IntsLike | None = None,
        where: Where | None = None,
        effort: float | Mapping[str, int] | None = None,
        hits: bool = False,
        nonfinite: str | None = None,
        threads: int | None = None,
    ) -> Partial:
        """Attend to exactly the entries that `search` finds; None: to every entry.

        logit = scale * score, then softcap * tanh(logit / softcap), then + bias; weights are the softmax of the logits.

        Parameters
        ----------
        queries, rows, before, where, effort, nonfinite, threads
            As for `search`; a query that holds NaN or infinity, where it is let through, gives NaN.
        k
            Entries per query, clamped to the longest lane; or a reader, as for `search`.
        scale
            None: key_dim ** -0.5.
        softcap
            None: logits are not bent.
        bias
            One number per query head, or the name of a float32 column, added to the logits; which k entries are taken
            does not change. Minus infinity: no weight. "log_weight" where the write policy merges: each entry weighs as
            many tokens as it stands for.
        hits
            Also report what was attended.

        Raises
        ------
        StateError
            The bank stores no values.
        ShapeError, DtypeError, RowError, NonFinite, ArgumentError
            A wrong argument, or more than 2**31 places: of hits that are asked for, or of a `Window`.
        """
        arguments.effort(effort)
        reader, nonfinite = None if k is None else parts.reader(k), arguments.nonfinite(nonfinite)
        hits = arguments.flag("hits", hits)
        scale = self.key_dim**-0.5 if scale is None else arguments.real("scale", scale)
        softcap = None if softcap is None else arguments.real("softcap", softcap, positive=True)
        query, flat, at, seen = self._query(queries, rows, before)
        bias = None if bias is None else arguments.text("bias", bias) if isinstance(bias, str) else _bias(bias)
        allowed, conditions = _where.parse(where)
        native, threads = self._native_snapshot(), self._threads_of(threads)
        out, lse, found = native.attend(
            query, reader, at, scale, softcap, bias, seen, allowed, conditions, hits, nonfinite, threads
        )
        if flat:
            out, lse = out[0, 0], lse[0, 0]
        if found is None:
            return Partial(out, lse)
        mass = found[1][0, 0] if flat else found[1]
        return Partial(out, lse, _hits(found[0], flat=flat), mass)

    def attend_backward(
        self,
        queries: ArrayLike,
        hits: Hits,
        grad: ArrayLike,
        *,
        delta: ArrayLike,
        lse: ArrayLike,
        scale: float | None = None,
        softcap: float | None = None,
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Compute the gradient of the queries of an `attend`, entries being constants.

        With p = exp(logit - lse), it is the sum over the hits of p * (grad . value - delta) * dlogit/dscore * key (Dao
        et al. 2022, appendix B). Where the entries took part in a larger softmax, local keys among them, `lse` and
        `delta` are that one's.

        Parameters
        ----------
        queries
            As `attend` took them.
        hits
            What each query read, and of which rows: of this very version, since entries that are gone have no gradient
            to give. An entry that stands there several times for a query counts once, as in `attend`.
        grad
            float32, the shape of `out`: its gradient.
        delta
            float32, the shape of `lse`: grad . out.
        lse
            float32: log-sum-exp of the whole softmax, less what was added to the entries' logits: a bias per head.
        scale, softcap, threads
            As for `attend`.

        Returns
        -------
        NDArray
            float32, the shape of the queries. A query with NaN or infinity in it gives NaN.

        Raises
        ------
        Unsupported
            A bank of another metric than "dot".
        StateError
            The bank stores no values.
        IdError
            An entry that this version does not hold.
        ShapeError, DtypeError, ArgumentError
            A wrong argument.
        """
        if self.metric != "dot":
            raise Unsupported(f"metric={self.metric!r} has no gradient here: make the bank with metric='dot'")
        if self.value_dim is None:
            raise StateError("this bank stores no values that were attended to: make it with value_dim=")
        if not isinstance(hits, Hits):
            raise DtypeError(f"hits are {type(hits).__name__}; expected what attend(hits=True) or search gave")
        scale = self.key_dim**-0.5 if scale is None else arguments.real("scale", scale)
        softcap = None if softcap is None else arguments.real("softcap", softcap, positive=True)
        query, flat, at, _ = self._query(queries, hits.rows, None)
        shape = query[0].shape[2:3] if flat else query[0].shape[:3]
        ids = arguments.any_array("hits", hits.ids)
        of_out = _floats("grad", grad, (*shape, self.value_dim))
        delta, lse = _floats("delta", delta, shape), _floats("lse", lse, shape)
        if ids.dtype != np.int64:
            raise DtypeError(f"hits have ids of {ids.dtype}; expected int64")
        if ids.shape[:-1] != shape:
            raise ShapeError(f"hits have ids of shape {ids.shape}; expected {shape} and k")
        found = self._native_snapshot().query_gradient(
            query, at, np.ravel(ids), of_out, delta, lse, scale, softcap, self._threads_of(threads)
        )
        return found[0, 0] if flat else found

    @overload
    def gather(
        self, wanted: Hits | IntsLike, rows: IntsLike | None = None, *, threads: int | None = None
    ) -> tuple[Vectors, Vectors | None]: ...
    @overload
    def gather(
        self,
        wanted: Hits | IntsLike,
        rows: IntsLike | None = None,
        *,
        columns: Sequence[str],
        threads: int | None = None,
    ) -> tuple[Vectors, Vectors | None, Columns]: ...
    def gather(
        self,
        wanted: Hits | IntsLike,
        rows: IntsLike | None = None,
        columns: Sequence[str] = (),
        *,
        threads: int | None = None,
    ) -> tuple[Vectors, Vectors | None] | tuple[Vectors, Vectors | None, Columns]:
        """Read stored keys and values, and columns if any are named.

        Parameters
        ----------
        wanted
            Hits: the result has their shape and dim, zeros at padding. Or ids `[rows, n]`, giving `[rows, heads, n,
            dim]`; `[n]` for a bank of one lane, giving `[n, dim]`.
        rows
            Bank row of each row of ids; None: all. Hits name their own.
        columns
            Names of columns to read along: "id", "label", "position", the bank's own; where the write policy merges,
            "count", the tokens that an entry stands for, and "log_weight", what a bias of that name adds.

        Returns
        -------
        keys, values
            float32, or float16 from a bank of float16; values are None where the bank has none.
        columns
            With `columns=` only: an array of the column's type for each name, of the shape of the hits or ids; "count"
            and "log_weight" are of the shape of keys without dim, since heads count apart. At padding id, label and
            position are -1, all others 0 or False.

        Raises
        ------
        IdError
            An id that is not there.
        ArgumentError
            A column that is not there.
        """
        columns = _entries.names(columns)
        keys, values, named = _entries.gather(
            self._native_snapshot(), wanted, rows, columns, heads=self.heads, threads=self._threads_of(threads)
        )
        return (keys, values, named) if columns else (keys, values)

    def find(
        self,
        labels: IntsLike | None = None,
        where: Where | None = None,
        rows: IntsLike | None = None,
        *,
        threads: int | None = None,
    ) -> list[NDArray[np.int64]]:
        """List the ids of entries by label or by what their columns say, without looking at a key.

        Parameters
        ----------
        labels
            Entries with any of these labels; None: any label.
        where
            As for `search`; bitmaps are one for all rows, or one per row looked through. With `labels`, both hold.
        rows
            Bank rows to look through; None: all.
        threads
            For this call, instead of the bank's.

        Returns
        -------
        ids
            One int64 array per row, ascending. An entry counts while any head of its row has it.

        Raises
        ------
        ShapeError, DtypeError, RowError, ArgumentError
            A wrong argument.
        """
        return _entries.find(self._native_snapshot(), labels, where, rows, threads=self._threads_of(threads))

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
            lists of float32 or float16; bfloat16 stands as uint16 with the field metadata `mnemex.dtype`. Then the
            bank's own columns by name. `ingest` reads it back: with `head="head"` where the bank has several heads, and
            `columns=` for the bank's own.
        """
        return ArrowTable(self._native_snapshot())

    def _query(
        self, queries: ArrayLike, rows: IntsLike | None, before: IntsLike | None
    ) -> tuple[tuple[NDArray[np.generic], str], bool, NDArray[np.int64] | None, NDArray[np.int64] | None]:
        query = vectors("queries", queries, one_lane=self._one_lane)
        shape = query[0].shape
        flat = self._one_lane and is_flat("queries", queries)
        at = None if rows is None else arguments.rows("rows", rows, self.rows)
        if before is None:
            return query, flat, at, None
        seen = arguments.side("before", before, (shape[0], shape[2]), np.int64, one_lane=self._one_lane)
        return query, flat, at, seen  # type: ignore[return-value]


def _floats(name: str, x: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Take float32 numbers of a shape, one after the other."""
    numbers = arguments.any_array(name, x)
    if numbers.dtype != np.float32:
        raise DtypeError(f"{name} is {numbers.dtype}; expected float32")
    if numbers.shape != shape:
        raise ShapeError(f"{name} has shape {numbers.shape}; expected {shape}")
    return np.ravel(numbers)


def _bias(x: object) -> NDArray[np.float32]:
    """Take one number per query head; how many is the native module's to check."""
    numbers = arguments.any_array("bias", x)
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiu":
        raise DtypeError(
            f"bias is {numbers.dtype} of shape {numbers.shape}; expected one number per query head, or a column's name"
        )
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(numbers, np.float32)
    if (np.isinf(narrow) & np.isfinite(numbers)).any():
        raise ArgumentError(f"bias holds {numbers[np.isinf(narrow) & np.isfinite(numbers)][0]}, beyond float32")
    return narrow


def _hits(
    found: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.int64]], *, flat: bool
) -> Hits:
    scores, ids, labels, rows = found
    if flat:
        scores, ids, labels = scores[0, 0], ids[0, 0], None if labels is None else labels[0, 0]
    return Hits(scores, ids, rows, labels)
