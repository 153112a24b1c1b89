"""The bookkeeping of a window against a plain list of tokens."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mnemex.hf.window import WindowRows

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 5), st.integers(0, 2**10)),
        st.tuples(st.just("crop"), st.integers(1, 9), st.just(0)),
        st.tuples(st.just("select"), st.integers(0, 8), st.just(0)),
    ),
    max_size=12,
)


class PlainRow:
    """One row as lists: every column with its padding, and where it is."""

    def __init__(self):
        self.valid, self.place, self.ids, self.next_id = [], [], {}, 0

    def copy(self):
        twin = PlainRow()
        twin.valid, twin.place, twin.ids, twin.next_id = (
            list(self.valid),
            list(self.place),
            dict(self.ids),
            self.next_id,
        )
        return twin


@given(rows=st.integers(1, 3), max_sinks=st.integers(0, 3), window=st.integers(1, 5), steps=STEPS)
def test_every_token_is_in_one_place(rows, max_sinks, window, steps):
    state = WindowRows(max_sinks)
    state.begin(rows)
    plain = [PlainRow() for _ in range(rows)]
    for kind, n, seed in steps:
        if kind == "append":
            valid = np.random.default_rng(seed).random((len(plain), n)) < 0.7
            first = state.total
            positions = np.broadcast_to(np.arange(first, first + n), valid.shape)
            state.append(positions, None if valid.all() else valid)
            for row, mask in zip(plain, valid, strict=True):
                row.valid += list(mask)
                row.place += ["window"] * n
            extra = state.n - (window - 1)
            if extra > 0:
                evict(state, plain, extra)
        elif kind == "crop":
            crop(state, plain, min(n, state.total))
        else:
            index = np.random.default_rng(n).integers(0, len(plain), 2)
            state.select(index)
            plain = [plain[i].copy() for i in index]
        check(state, plain)


def evict(state, plain, n):
    eviction = state.evict(n)
    stored = np.ones((len(plain), n), bool) if eviction.stored is None else eviction.stored
    ids = np.full(stored.shape, -1)
    sinks = set() if eviction.sinks is None else set(zip(*(x.tolist() for x in eviction.sinks), strict=True))
    for r, row in enumerate(plain):
        for i in range(n):
            column = eviction.first + i
            n_sinks = row.place.count("sink")
            if not row.valid[column]:
                row.place[column] = "nowhere"
            elif n_sinks < state.max_sinks:
                row.place[column] = "sink"
                assert (r, n_sinks, i) in sinks
            else:
                row.place[column] = "memory"
                ids[r, i] = row.ids[column] = row.next_id
                row.next_id += 1
            assert (row.place[column] == "memory") == stored[r, i]
            assert eviction.positions[r, i] == column
    state.record(eviction.first, ids)


def crop(state, plain, n):
    ends = state.crop(n)
    for r, row in enumerate(plain):
        total = len(row.valid) - n
        dropped = [id_ for column, id_ in row.ids.items() if column >= total]
        assert min(dropped, default=None) == (None if ends is None or ends[r] == 1 << 62 else ends[r])
        del row.valid[total:], row.place[total:]
        row.ids = {column: id_ for column, id_ in row.ids.items() if column < total}


def check(state, plain):
    assert state.total == len(plain[0].valid)
    assert state.n_rows == len(plain)
    for r, row in enumerate(plain):
        assert row.place.count("window") == state.n
        used = [column for column in state.sink_columns[r] if column >= 0]
        assert used == [column for column, place in enumerate(row.place) if place == "sink"]
        kept = [run.column + i for run in state.runs[r] for i in range(run.n)]
        assert kept == [column for column, place in enumerate(row.place) if place == "memory"]
        assert [run.id + i for run in state.runs[r] for i in range(run.n)] == [row.ids[c] for c in kept]
    first = state.ends(0)
    wanted = [min(row.ids.values(), default=1 << 62) for row in plain]
    assert (first is None) == all(w == 1 << 62 for w in wanted)
    assert first is None or list(first) == wanted
    valid = state.valid if state.valid is not None else np.ones((len(plain), state.n), bool)
    assert [list(v) for v in valid] == [row.valid[state.total - state.n :] for row in plain]
