"""What the rows of a window hold: positions, padding, sinks, and where each token went in the memory.

Every attached layer holds the same tokens, so this is kept once per cache, in numpy, beside the layers' tensors. Tokens
are counted by their column in the sequence, pads included. The first tokens of each row that are not pads become its
sinks when they leave the window; the others go to the memory; pads go nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

NO_END = 1 << 62
"""An id above every id of a row: truncating there changes nothing."""


class Eviction(NamedTuple):
    """The oldest `n` columns of the window, and where they go.

    `stored` is the mask `[rows, n]` of those that go to the memory, None for all of them; `sinks` are the (row, slot,
    column) of those that become sinks, None for none.
    """

    n: int
    first: int
    positions: Ints
    stored: Bools | None
    sinks: tuple[Ints, Ints, Ints] | None


class Run(NamedTuple):
    """Tokens of one row that follow each other in the sequence and in the memory."""

    column: int
    id: int
    n: int


@dataclass
class WindowRows:
    """State of all rows. `total` columns were seen, the last `n` of which are in the window."""

    max_sinks: int
    total: int = 0
    n: int = 0
    positions: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    valid: Bools | None = None
    sink_columns: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    runs: list[list[Run]] = field(default_factory=list)

    def begin(self, rows: int) -> None:
        """Start with empty rows."""
        self.positions = np.zeros((rows, 0), np.int64)
        self.sink_columns = np.full((rows, self.max_sinks), -1, np.int64)
        self.runs = [[] for _ in range(rows)]

    @property
    def n_rows(self) -> int:
        """Number of rows; 0 before the first tokens."""
        return len(self.runs)

    @property
    def n_sinks(self) -> int:
        """Sinks of the row that has most."""
        return int((self.sink_columns >= 0).sum(1).max(initial=0))

    def sinks_valid(self) -> Bools | None:
        """Which of the `n_sinks` slots each row uses `[rows, n_sinks]`; None where every row uses all."""
        used = self.sink_columns[:, : self.n_sinks] >= 0
        return None if used.all() else used

    def append(self, positions: Ints, valid: Bools | None) -> None:
        """Take new columns in: positions `[rows, T]`, and which are no pads, None for all."""
        n_new = positions.shape[1]
        if valid is not None or self.valid is not None:
            before = np.ones((self.n_rows, self.n), np.bool_) if self.valid is None else self.valid
            after = np.ones(positions.shape, np.bool_) if valid is None else valid
            self.valid = np.concatenate([before, after], 1)
        self.positions = np.concatenate([self.positions, positions], 1) if self.n else positions
        self.n += n_new
        self.total += n_new

    def evict(self, n: int) -> Eviction:
        """Let the oldest `n` columns go."""
        first = self.total - self.n
        positions, self.positions = self.positions[:, :n], self.positions[:, n:]
        stored, self.valid = (None, None) if self.valid is None else (self.valid[:, :n], self.valid[:, n:])
        if self.valid is not None and self.valid.all():
            self.valid = None
        self.n -= n
        filled = (self.sink_columns >= 0).sum(1)
        if filled.min(initial=self.max_sinks) == self.max_sinks:
            return Eviction(n, first, positions, stored, None)
        fresh = np.ones((self.n_rows, n), np.bool_) if stored is None else stored
        slots = filled[:, None] + fresh.cumsum(1) - 1
        becomes_sink = fresh & (slots < self.max_sinks)
        rows, columns = becomes_sink.nonzero()
        slot = slots[rows, columns]
        self.sink_columns[rows, slot] = first + columns
        return Eviction(n, first, positions, fresh & ~becomes_sink, (rows, slot, columns) if len(rows) else None)

    def record(self, first: int, ids: Ints) -> None:
        """Note under which ids `[rows, n]` the columns from `first` on were stored; -1: not stored."""
        for runs, row in zip(self.runs, ids, strict=True):
            columns = (row >= 0).nonzero()[0]
            if not len(columns):
                continue
            kept = row[columns]
            breaks = ((np.diff(columns) != 1) | (np.diff(kept) != 1)).nonzero()[0] + 1
            for part in np.split(np.arange(len(columns)), breaks):
                column, id_, n = first + int(columns[part[0]]), int(kept[part[0]]), len(part)
                last = runs[-1] if runs else None
                if last is not None and last.column + last.n == column and last.id + last.n == id_:
                    runs[-1] = last._replace(n=last.n + n)
                else:
                    runs.append(Run(column, id_, n))

    def crop(self, n: int) -> Ints | None:
        """Take the newest `n` columns back; the id at which each row of the memory ends then, None: unchanged."""
        from_window = min(n, self.n)
        self.total -= n
        self.n -= from_window
        self.positions = self.positions[:, : self.n]
        self.valid = None if self.valid is None else self.valid[:, : self.n]
        if n == from_window:
            return None
        self.sink_columns[self.sink_columns >= self.total] = -1
        ends = self.ends(self.total)
        for runs in self.runs:
            while runs and runs[-1].column + runs[-1].n > self.total:
                run = runs.pop()
                kept = max(0, self.total - run.column)
                if kept:
                    runs.append(run._replace(n=kept))
        return ends

    def ends(self, total: int) -> Ints | None:
        """Tell the id at which each row of the memory ends when columns from `total` on go; None: unchanged."""
        ends = np.full(self.n_rows, NO_END, np.int64)
        for row, runs in enumerate(self.runs):
            gone = next((run for run in runs if run.column + run.n > total), None)
            if gone is not None:
                ends[row] = gone.id + max(0, total - gone.column)
        return ends if (ends != NO_END).any() else None

    def ids(self, row: int) -> Ints:
        """List the ids that a row has put into the memory, ascending."""
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(run.id, run.id + run.n) for run in self.runs[row])])

    def select(self, index: Ints) -> None:
        """Become the rows `index` of what was."""
        self.positions = self.positions[index]
        self.valid = None if self.valid is None else self.valid[index]
        self.sink_columns = self.sink_columns[index]
        self.runs = [list(self.runs[i]) for i in index]
