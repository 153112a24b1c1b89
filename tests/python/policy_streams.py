"""Random histories of banks whose write policy merges, beside plain lanes of numpy: how such policies are tested."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

import mnemex as mx

HEADS, DIM, VALUE_DIM = 2, 5, 3
PINS = {"sinks": st.integers(0, 2), "recent": st.integers(0, 2)}
EVICTS = st.one_of(st.builds(mx.OldestAge, **PINS), st.builds(mx.Fifo, **PINS), st.builds(mx.Lru, **PINS))
STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 12)),
    st.tuples(st.just("write"), st.integers(1, 3)),
    st.tuples(st.just("write"), st.integers(20, 40)),
    st.tuples(st.just("touch"), st.integers(1, 20)),
    st.tuples(st.just("delete"), st.integers(5, 40)),
    st.tuples(st.just("truncate"), st.integers(0, 5)),
    st.tuples(st.sampled_from(["copy", "save", "fork", "reorder", "snapshot", "rollback", "reset"]), st.just(0)),
)


@dataclass
class Entry:
    """One entry of a lane; `member` is the representative of its cluster, where that is another."""

    key: np.ndarray
    value: np.ndarray
    updated: int
    used: int
    count: int = 1
    member: int | None = None


@dataclass
class PlainLane:
    """The entries of a lane by id, and the tokens that went with those that ended."""

    policy: object
    head: int
    entries: dict[int, Entry] = field(default_factory=dict)
    gone: int = 0

    def place(self, tokens: dict, ids: range, version: int, capacity: int) -> dict[int, int]:
        """Take tokens (key, value) by id, of a commit that gave out `ids`; say which entry each ended in."""
        raise NotImplementedError

    def log_weight(self, id_: int) -> float:
        return float(np.log(self.entries[id_].count))

    def write(self, evict, capacity: int, tokens: dict, ids: range, version: int) -> dict[int, int]:
        """Take tokens, then let the evict policy end what is too much."""
        landed = self.place(tokens, ids, version, capacity)
        for id_ in self.victims(evict, len(self.entries) - capacity):
            self.end(id_)
        return {id_: to if to in self.entries else -1 for id_, to in landed.items()}

    def victims(self, evict, over: int) -> list[int]:
        ids = sorted(self.entries)
        worth = {mx.OldestAge: "updated", mx.Lru: "used"}.get(type(evict))
        free = ids[evict.sinks : len(ids) - evict.recent]
        free.sort(key=lambda id_: (getattr(self.entries[id_], worth) if worth else 0, id_))
        return free[: max(0, over)]

    def end(self, id_: int) -> None:
        self.gone += self.entries.pop(id_).count


def state_of(bank) -> list[list[dict[int, tuple]]]:
    """Read every lane of a bank or a snapshot: key, value, count and logarithm of the weight by id."""
    queries = np.zeros((bank.rows, bank.heads, 1, bank.key_dim), np.float32)
    hits = bank.search(queries, max(1, int(bank.lengths.max())))
    keys, values, columns = bank.gather(hits, columns=["count", "log_weight"])
    places = (keys, values, columns["count"], columns["log_weight"])
    return [
        [
            {int(id_): tuple(x[row, head, 0, i] for x in places) for i, id_ in enumerate(ids[0]) if id_ >= 0}
            for head, ids in enumerate(of_row)
        ]
        for row, of_row in enumerate(hits.ids)
    ]


def check(bank, rows: list[list[PlainLane]]) -> None:
    """Hold a bank against plain lanes: keys and values bit for bit."""
    for lanes, plain in zip(state_of(bank), rows, strict=True):
        for found, lane in zip(lanes, plain, strict=True):
            assert sorted(found) == sorted(lane.entries)
            for id_, (key, value, count, weight) in found.items():
                entry = lane.entries[id_]
                assert count == entry.count
                assert key.tobytes() == entry.key.tobytes()
                assert value.tobytes() == entry.value.tobytes()
                assert abs(weight - lane.log_weight(id_)) <= 1e-6


def draw(rng: np.random.Generator, rows: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw keys that crowd around a few centres, some of them equal, and values."""
    centres = np.random.default_rng(7).standard_normal((4, DIM))
    keys = centres[rng.integers(0, 4, (rows, HEADS, n))] + 0.1 * rng.integers(-2, 3, (rows, HEADS, n, DIM))
    keys[rng.random(keys.shape[:3]) < 0.1] = 0.0
    return keys.astype(np.float32), rng.standard_normal((rows, HEADS, n, VALUE_DIM), np.float32)


def play(policy, lane_of, evict, metric: str, capacity: int | list[int], steps, seed: int, folder) -> None:
    """Do the steps to a bank and to plain lanes, and compare after each."""
    rng = np.random.default_rng(seed)
    bank = mx.Bank(
        rows=2,
        heads=HEADS,
        key_dim=DIM,
        value_dim=VALUE_DIM,
        capacity=capacity,
        metric=metric,
        write=policy,
        evict=evict,
    )
    room = np.broadcast_to(capacity, HEADS).tolist()
    rows, next_ids, held = [[lane_of(head) for head in range(HEADS)] for _ in range(2)], [0, 0], []
    for number, (what, n) in enumerate(steps):
        every = [(lane, room[head]) for lanes in rows for head, lane in enumerate(lanes)]
        if what == "write":
            keys, values = draw(rng, len(rows), n)
            mask = rng.random((len(rows), n)) < 0.9
            for part in [slice(0, n // 2), slice(n // 2, n)] if n > 4 else [slice(0, n)]:
                bank.stage(keys[:, :, part], values[:, :, part], mask=mask[:, part])
            receipt = bank.commit()
            ids, landed = np.concatenate(receipt.ids, 1), np.concatenate(receipt.landed, 2)
            for row, lanes in enumerate(rows):
                written = np.flatnonzero(mask[row])
                given = range(next_ids[row], next_ids[row] + len(written))
                assert ids[row][written].tolist() == list(given)
                next_ids[row] = given.stop
                for head, lane in enumerate(lanes):
                    tokens = {int(ids[row, t]): (keys[row, head, t], values[row, head, t]) for t in written}
                    # A row in which nothing arrives is left alone.
                    ended = lane.write(evict, room[head], tokens, given, receipt.version) if tokens else {}
                    assert landed[row, head, written].tolist() == list(ended.values())
                    assert (landed[row, head][~mask[row]] == -1).all()
        elif what == "touch":
            found = np.stack([rng.integers(0, max(1, end), (HEADS, 1, n)) for end in next_ids])
            bank.touch(mx.Hits(np.zeros(found.shape, np.float32), found, np.arange(len(rows))))
            version = bank.commit().version
            for lanes, ids in zip(rows, found, strict=True):
                for lane, touched in zip(lanes, ids, strict=True):
                    for id_ in set(touched.reshape(-1).tolist()) & set(lane.entries):
                        lane.entries[id_].used = version
        elif what == "delete":
            gone = [i for i in range(max(next_ids)) if rng.random() < n / 100]
            bank.delete(ids=gone)
            for lane, _ in every:
                for id_ in set(gone) & set(lane.entries):
                    lane.end(id_)
        elif what == "truncate":
            bank.truncate([max(0, end - n) for end in next_ids])
            for lanes, end in zip(rows, next_ids, strict=True):
                for lane in lanes:
                    for id_ in [i for i in lane.entries if i >= end - n]:
                        lane.end(id_)
        elif what == "copy":
            bank = bank.copy()
        elif what == "save":
            bank.save(folder / str(number))
            bank = mx.open(folder / str(number))
            assert bank.capacity == (tuple(capacity) if isinstance(capacity, list) else capacity)
        elif what == "fork" and len(rows) < 4:
            bank.fork(2)
            rows = [copy.deepcopy(lanes) for lanes in rows for _ in range(2)]
            next_ids = [end for end in next_ids for _ in range(2)]
        elif what == "reorder":
            index = rng.integers(0, len(rows), 2)
            bank.reorder(index)
            rows = [copy.deepcopy(rows[at]) for at in index]
            next_ids = [next_ids[at] for at in index]
        elif what == "snapshot":
            held.append((bank.snapshot(), copy.deepcopy(rows)))
        elif what == "rollback":
            bank.stage(*draw(rng, len(rows), 3))
            bank.rollback()
        elif what == "reset":
            bank.reset([0])
            for lane in rows[0]:
                for id_ in list(lane.entries):
                    lane.end(id_)
        check(bank, rows)
        assert (bank.lengths <= room).all()
        for lanes, end in zip(rows, next_ids, strict=True):
            for lane in lanes:
                assert sum(entry.count for entry in lane.entries.values()) + lane.gone == end, "counts conserve writes"
    for snapshot, was in held:
        check(snapshot, was)
