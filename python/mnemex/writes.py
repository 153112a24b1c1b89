"""What is written to a bank: tokens in, staged and committed, and what entries were used for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mnemex import _arguments as arguments
from mnemex import _columns
from mnemex._arrays import is_flat, vectors
from mnemex.ingest import Ingests
from mnemex.reads import Reads
from mnemex.results import Hits, Receipt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mnemex._arrays import ArrayLike, IntsLike
    from mnemex._columns import ColumnLike
    from mnemex._native import NativeBank

ON_DUPLICATE = ("raise", "skip", "replace")


class Writes(Ingests, Reads):
    """Writes of one bank: invisible until committed, and then all at once."""

    _native: NativeBank

    def stage(
        self,
        keys: ArrayLike,
        values: ArrayLike | None = None,
        *,
        rows: IntsLike | None = None,
        positions: IntsLike | None = None,
        mask: ArrayLike | None = None,
        labels: IntsLike | None = None,
        columns: Mapping[str, ColumnLike] | None = None,
        on_duplicate: str | None = None,
        nonfinite: str | None = None,
        threads: int | None = None,
    ) -> NDArray[np.int64]:
        """Take tokens in; they stay invisible until `commit`.

        Parameters
        ----------
        keys
            `[rows, heads, T, key_dim]` (`[T, key_dim]` for one lane), float32, float16 or bfloat16, any strides. The
            memory may be reused after the call.
        values
            `[rows, heads, T, value_dim]`.
        rows
            Bank row of each row of the arrays, or a mask over the bank's rows; None: all.
        positions
            `[rows, T]` whole numbers; None: the ids.
        mask
            `[rows, T]`: False tokens are not written and may hold anything.
        labels
            `[rows, T]` whole numbers of yours, which hits bring back; None: -1, which is no label. They may repeat.
        on_duplicate
            What is done about a label that a live or staged entry of the row has, or an earlier token of the call.
            None: nothing. "raise": the call is refused. "skip": the token is not written. "replace": every entry with
            the label ends at commit, and the token is written under a new id; of several staged tokens the last stays.
            -1 is never a duplicate. The first such call indexes the row's labels (about 24 bytes each, and a second for
            some millions); later ones cost by their own tokens.
        columns
            `[rows, T]` for any of the columns that the bank declares, of their types (float32 takes float16 too). NaN
            and infinity are stored as they are. Tokens have 0, or False, in a column that is not given.
        nonfinite
            For this call, instead of the bank's.
        threads
            For this call, instead of the bank's.

        Returns
        -------
        ids
            int64 `[rows, T]` (`[T]` where keys were `[T, key_dim]`), ascending from 0 in each row, never used again
            once committed; -1 for a token that is not written. "replace" gives every token an id, also one that a later
            token replaces.

        Raises
        ------
        ShapeError, DtypeError, RowError, NonFinite, CapacityError, ArgumentError
            What was staged before stays as it was.
        """
        tokens = self._tokens(keys, values, rows, positions, mask, labels, columns, on_duplicate, nonfinite)
        ids = self._native.stage(tokens, self._threads_of(threads))
        return ids[0] if tokens[-1] else ids

    def _tokens(
        self,
        keys: ArrayLike,
        values: ArrayLike | None,
        rows: IntsLike | None,
        positions: IntsLike | None,
        mask: ArrayLike | None,
        labels: IntsLike | None,
        columns: Mapping[str, ColumnLike] | None,
        on_duplicate: str | None,
        nonfinite: str | None,
    ) -> tuple[Any, ...]:
        """Check what `stage` and `write` take, for the native module."""
        k = vectors("keys", keys, one_lane=self._one_lane)
        v = None if values is None else vectors("values", values, one_lane=self._one_lane)
        shape = (k[0].shape[0], k[0].shape[2])
        return (
            k,
            v,
            arguments.rows("rows", rows, self.rows),
            arguments.side("mask", mask, shape, bool, one_lane=self._one_lane),
            arguments.side("labels", labels, shape, np.int64, one_lane=self._one_lane),
            None if on_duplicate is None else arguments.word("on_duplicate", on_duplicate, ON_DUPLICATE),
            arguments.side("positions", positions, shape, np.int64, one_lane=self._one_lane),
            arguments.nonfinite(nonfinite),
            _columns.given(columns, self.columns, shape, one_lane=self._one_lane),
            self._one_lane and is_flat("keys", keys),
        )

    def commit(self) -> Receipt:
        """Publish everything staged as one version: all or nothing."""
        return Receipt._of(self._native.commit(self._threads))

    def write(
        self,
        keys: ArrayLike,
        values: ArrayLike | None = None,
        *,
        rows: IntsLike | None = None,
        positions: IntsLike | None = None,
        mask: ArrayLike | None = None,
        labels: IntsLike | None = None,
        columns: Mapping[str, ColumnLike] | None = None,
        on_duplicate: str | None = None,
        nonfinite: str | None = None,
        threads: int | None = None,
    ) -> Receipt:
        """Stage and commit as one step; takes what `stage` takes.

        Where it is refused, fails or is interrupted, nothing of it stays staged; what was staged before stays.
        """
        tokens = self._tokens(keys, values, rows, positions, mask, labels, columns, on_duplicate, nonfinite)
        return Receipt._of(self._native.write(tokens, self._threads_of(threads)))

    def rollback(self, rows: IntsLike | None = None, end: int | IntsLike | None = None) -> None:
        """Drop what is staged, touches too; the ids are given again, and what was to be replaced stays.

        In the receipt, dropped tokens have id -1; a call of which nothing is left is not listed.

        Parameters
        ----------
        rows
            Only what is staged for these rows; None: all.
        end
            Only tokens with an id of `end` or more: one number, or one per row. Touches stay. The next token of the row
            gets the id `end`. What was committed is not touched: `truncate` is for that.

        Raises
        ------
        ShapeError, RowError, ArgumentError
            A wrong argument; everything stays staged.
        """
        ends = None if end is None else arguments.ends("end", end)
        self._native.rollback(arguments.rows("rows", rows, self.rows), ends)

    def touch(self, hits: Hits, mass: ArrayLike | None = None) -> None:
        """Stage that entries were used: a commit counts it, before it writes. Ids that are not there are passed over.

        Evict policies that go by use read these counts; searching alone never changes a bank. Counts stay with an entry
        through snapshots, copies, forks and reordering, and are saved where the evict policy goes by them.

        Parameters
        ----------
        hits
            Of `search` or `attend` on this bank; an entry that several queries found is counted for each, one that a
            query found in several places (`Window`) once.
        mass
            Softmax weight of each hit, the shape of `hits.ids`, as `Partial.mass`; None: none is added. Weights in
            several places of an entry are added up.

        Raises
        ------
        ShapeError, DtypeError, RowError, NonFinite
            Nothing of the call is staged.
        """
        rows, ids = arguments.hits(hits, self.heads, self.rows)
        weights = None if mass is None else arguments.weights("mass", mass, np.shape(hits.ids))
        self._native.touch(rows, ids.shape[1], ids.shape[3], np.ascontiguousarray(ids).reshape(-1), weights)
