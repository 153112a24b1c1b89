"""Entries one by one: reading what is stored of given ids, and finding ids by what columns say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from mnemex import _arguments as arguments
from mnemex import _where
from mnemex.errors import ArgumentError, DtypeError, IdError, ShapeError
from mnemex.results import Hits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mnemex._arrays import IntsLike
    from mnemex._native import NativeSnapshot

    Vectors = NDArray[np.float32] | NDArray[np.float16]
    Columns = dict[str, NDArray[np.float32] | NDArray[np.int64] | NDArray[np.bool_]]

COUNT = "count"
"""The column of tokens that an entry stands for, in banks that merge."""

LOG_WEIGHT = "log_weight"
"""The column of what `attend` adds to their logits, so that entries weigh the tokens that they stand for."""


def gather(
    native: NativeSnapshot,
    wanted: Hits | IntsLike,
    rows: IntsLike | None,
    columns: Sequence[str],
    *,
    heads: int,
    threads: int | None,
) -> tuple[Vectors, Vectors | None, Columns]:
    """Read keys, values and the named columns of hits or ids."""
    if isinstance(wanted, Hits):
        if rows is not None:
            raise ArgumentError(f"rows={rows!r} does not go with hits, which name their rows: leave it out")
        bank_rows, ids = arguments.hits(wanted, heads, native.rows)
        shape = np.shape(wanted.ids)
        of_heads = np.arange(ids.shape[1], dtype=np.int64) // (ids.shape[1] // heads)
        entries, entries_shape = ids, shape
    else:
        entries, bank_rows, one = _ids(native, wanted, rows, one_lane=heads == 1 and native.rows == 1)
        of_heads = np.arange(heads, dtype=np.int64)
        ids = np.broadcast_to(entries[:, None], (len(entries), heads, entries.shape[1]))
        shape, entries_shape = (ids.shape[2:], entries.shape[1:]) if one else (ids.shape, entries.shape)
    flat_rows, flat_heads = _each(bank_rows[:, None], ids), _each(of_heads, ids)
    flat_ids = np.ascontiguousarray(ids).reshape(-1)
    keys, values = native.gather(flat_rows, flat_heads, flat_ids, threads)
    named: Columns = {}
    # Each head counts for itself.
    if native.merges and COUNT in columns:
        named[COUNT] = native.counts(flat_rows, flat_heads, flat_ids).reshape(shape)
    if native.merges and LOG_WEIGHT in columns:
        named[LOG_WEIGHT] = native.log_weights(flat_rows, flat_heads, flat_ids).reshape(shape)
    shared = [name for name in columns if name not in named]
    if shared:
        # Heads share columns: ids that were given once per row are read once per row.
        if entries is not ids:
            flat_rows = np.repeat(bank_rows, entries.shape[1])
            flat_ids = np.ascontiguousarray(entries).reshape(-1)
        named |= {name: native.column(name, flat_rows, flat_ids).reshape(entries_shape) for name in shared}
    return _vectors(keys, shape), None if values is None else _vectors(values, shape), named


def names(columns: object) -> list[str]:
    """Take names of columns."""
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise DtypeError(f"columns={columns!r} must be a list of names")
    listed = list(columns)
    if not all(isinstance(name, str) for name in listed):
        raise DtypeError(f"columns={columns!r} must be a list of names")
    return [arguments.text("columns", str(name)) for name in listed]


def find(
    native: NativeSnapshot,
    labels: IntsLike | None,
    where: _where.Where | None,
    rows: IntsLike | None,
    *,
    threads: int | None,
) -> list[NDArray[np.int64]]:
    """List the ids of each row whose entries meet every condition."""
    bitmaps, conditions = _where.parse(where)
    if labels is not None:
        conditions = [*conditions, ("label", "in", arguments.ints("labels", labels).reshape(-1))]
    return native.find(bitmaps, conditions, arguments.rows("rows", rows, native.rows), threads)


def _ids(
    native: NativeSnapshot, wanted: IntsLike, rows: IntsLike | None, *, one_lane: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Take ids `[rows, n]` and their bank rows; whether they were given as `[n]` of a bank of one lane."""
    ids = arguments.ints("ids", wanted)
    one = ids.ndim == 1 and one_lane
    ids = ids[None] if one else ids
    if ids.ndim != 2:
        raise ShapeError(f"ids have shape {ids.shape}; expected [rows, n], or [n] of a bank of one lane")
    if (ids < 0).any():
        raise IdError(f"ids name {int(ids.min())}; ids are 0 and up")
    named = arguments.rows("rows", rows, native.rows)
    bank_rows = np.arange(native.rows, dtype=np.int64) if named is None else named
    if len(bank_rows) != len(ids):
        raise ShapeError(f"ids have {len(ids)} rows; expected {len(bank_rows)}, one for each bank row read")
    return ids, bank_rows, one


def _each(x: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Repeat a number per row and head for each of their ids."""
    return np.repeat(np.broadcast_to(x, ids.shape[:2]).reshape(-1), int(np.prod(ids.shape[2:])))


def _vectors(x: NDArray[np.generic], shape: tuple[int, ...]) -> Vectors:
    numbers = x.view(np.float16) if x.dtype == np.uint16 else x
    return numbers.reshape(*shape, x.shape[-1])  # type: ignore[return-value]
