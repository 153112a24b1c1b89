"""The steps of `mnemex.testing`, and what is checked after each: a state machine of hypothesis."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mnemex.results import Hits
from mnemex.testing import MOST_ROWS, capacity_of, numbers, state_of, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from mnemex.bank import Bank, Snapshot
    from mnemex.results import Receipt
    from mnemex.testing import State

T = TypeVar("T")
SEEDS = st.integers(0, 2**32 - 1)


def machine(
    make: Callable[[int], Bank], reopen: Callable[[Bank], Bank], most: int | None, *, regroups: bool
) -> type[RuleBasedStateMachine]:
    """Give the machine for one kind of bank.

    `make` takes the threads of its calls, `most` tokens come to a commit, and with `regroups` an entry may take over
    what others stood for.
    """

    class Machine(Steps):
        def __init__(self) -> None:
            super().__init__(make(1), make(2), reopen, most)
            self.regroups = regroups

    return Machine


class Steps(RuleBasedStateMachine):
    """`bank` is checked; `twin` does the same, and is never saved, opened or copied."""

    def __init__(self, bank: Bank, twin: Bank, reopen: Callable[[Bank], Bank], most: int | None) -> None:
        super().__init__()
        self.bank, self.twin, self.reopen = bank, twin, reopen
        self.committed: State = state_of(bank)
        self.held: list[tuple[Snapshot, State]] = []
        self.deleted: list[set[int]] = [set() for _ in range(bank.rows)]
        self.staged: list[list[int]] = []
        self.touched, self.arriving, self.most = False, 0, most
        self.regroups = False

    def both(self, call: Callable[[Bank], T]) -> tuple[T, T]:
        return call(self.bank), call(self.twin)

    def quiet(self) -> bool:
        return not self.staged and not self.touched

    # ------------------------------------------------------------------ steps

    @rule(seed=SEEDS, n=st.integers(1, 9))
    def stage(self, seed: int, n: int) -> None:
        n = n if self.most is None else min(n, self.most)
        if self.most is not None and self.arriving + n > self.most:
            self.commit()
        self.arriving += n
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(self.bank.rows)[: rng.integers(1, self.bank.rows + 1)])
        keys, values = tokens(rng, self.bank, len(rows), n)
        shape = (len(rows), n)
        labels, mask = rng.integers(0, 9, shape), rng.random(shape) < 0.9
        own = numbers(rng, self.bank, shape)
        one, other = self.both(
            lambda bank: bank.stage(keys, values, rows=rows, labels=labels, mask=mask, columns=own or None)
        )
        assert np.array_equal(one, other), "the same tokens got different ids"
        self.staged.append(rows.tolist())

    @rule(seed=SEEDS)
    def touch(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        end = 1 + max((id_ for lanes in self.committed for lane in lanes for id_ in lane), default=0)
        ids = rng.integers(0, end, (self.bank.rows, self.bank.heads, 1, 2))
        hits = Hits(np.zeros(ids.shape, np.float32), ids, np.arange(self.bank.rows))
        mass = rng.random(ids.shape)
        self.both(lambda bank: bank.touch(hits, mass))
        self.touched = True

    @rule()
    def commit(self) -> None:
        one, other = self.both(lambda bank: bank.commit())
        assert one.evicted == other.evicted, "banks that were told the same evicted differently"
        for mine, theirs in zip(one.landed, other.landed, strict=True):
            assert np.array_equal(mine, theirs), "banks that were told the same put tokens elsewhere"
        self.check_commit(one)
        self.settle()
        self.staged, self.touched, self.arriving = [], False, 0

    @rule()
    def rollback(self) -> None:
        self.both(lambda bank: bank.rollback())
        self.staged, self.touched, self.arriving = [], False, 0

    @rule(seed=SEEDS)
    def delete(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        row = int(rng.integers(self.bank.rows))
        ids = [id_ for id_ in {id_ for lane in self.committed[row] for id_ in lane} if rng.random() < 0.3]
        self.both(lambda bank: bank.delete(ids, rows=[row]))
        self.deleted[row] |= set(ids)
        self.settle()

    @precondition(quiet)
    @rule(seed=SEEDS)
    def truncate(self, seed: int) -> None:
        live = sorted({id_ for lanes in self.committed for lane in lanes for id_ in lane})
        end = live[seed % len(live)] if live else 0
        self.both(lambda bank: bank.truncate(end))
        for row, lanes in enumerate(self.committed):
            self.deleted[row] |= {id_ for lane in lanes for id_ in lane if id_ >= end}
        self.settle()

    @precondition(quiet)
    @rule(seed=SEEDS)
    def reset(self, seed: int) -> None:
        row = seed % self.bank.rows
        self.both(lambda bank: bank.reset(rows=[row]))
        self.deleted[row] |= {id_ for lane in self.committed[row] for id_ in lane}
        self.settle()

    @precondition(quiet)
    @rule(seed=SEEDS, n=st.integers(1, MOST_ROWS))
    def reorder(self, seed: int, n: int) -> None:
        self.move(np.random.default_rng(seed).integers(0, self.bank.rows, n), lambda bank, index: bank.reorder(index))

    @precondition(lambda self: self.quiet() and 2 * self.bank.rows <= MOST_ROWS)
    @rule()
    def fork(self) -> None:
        self.move(np.repeat(np.arange(self.bank.rows), 2), lambda bank, _: bank.fork(2))

    def move(self, index: np.ndarray, call: Callable[[Bank, np.ndarray], None]) -> None:
        self.both(lambda bank: call(bank, index))
        before = self.committed
        self.settle()
        assert self.committed == [before[row] for row in index], "rows are not copies of the rows that were named"
        self.deleted = [set(self.deleted[row]) for row in index]

    @precondition(quiet)
    @rule()
    def save_and_open(self) -> None:
        self.bank = self.reopen(self.bank)
        assert state_of(self.bank) == self.committed, "a bank came back from its file as another"

    @precondition(quiet)
    @rule()
    def copy(self) -> None:
        # Writing to the old one must not show in the copy.
        old, self.bank = self.bank, self.bank.copy()
        assert state_of(self.bank) == self.committed, "a copy is not what it was copied from"
        rng = np.random.default_rng(0)
        n = min(3, capacity_of(old) or 3)
        keys, values = tokens(rng, old, old.rows, n)
        old.write(keys, values, columns=numbers(rng, old, (old.rows, n)) or None)

    @rule()
    def snapshot(self) -> None:
        self.held = [*self.held[-1:], (self.bank.snapshot(), self.committed)]

    def settle(self) -> None:
        """Take how things are now as what must stay."""
        self.committed = state_of(self.bank)

    # ------------------------------------------------------------------ checks

    def check_commit(self, receipt: Receipt) -> None:
        """Every count grew by the tokens that landed there; rows that nothing was written to are as they were.

        Where a policy regroups, counts of a lane grew together, and fell by what was evicted alone.
        """
        after, heads = state_of(self.bank), self.bank.heads
        landed = [[Counter[int]() for _ in range(heads)] for _ in after]
        for rows, ids, ended in zip(self.staged, receipt.ids, receipt.landed, strict=True):
            flat = np.reshape(ended, (len(rows), heads, -1))
            for row, own, of_heads in zip(rows, np.reshape(ids, (len(rows), -1)), flat, strict=True):
                for head, ends in enumerate(of_heads):
                    assert (ends[own < 0] == -1).all(), "a token that was not written landed somewhere"
                    for end in ends[ends >= 0].tolist():
                        live = end in after[row][head]
                        assert live, f"landed names entry {end}, which is not live in row {row}, head {head}"
                        landed[row][head][end] += 1
        written = {row for rows in self.staged for row in rows}
        for row, lanes in enumerate(after):
            before = self.committed[row]
            for head, lane in enumerate(lanes):
                if self.regroups:
                    held, had = (sum(count for _, _, count in some.values()) for some in (lane, before[head]))
                    came = landed[row][head].total()
                    lost = had + came - held
                    assert lost >= 0, f"entries of row {row}, head {head} count {-lost} tokens that never came"
                    assert not lost or receipt.evicted, f"{lost} tokens of row {row}, head {head} are counted nowhere"
                    continue
                for id_, (_, _, count) in lane.items():
                    grown, came = count - before[head].get(id_, (b"", b"", 0))[2], landed[row][head][id_]
                    assert grown == came, (
                        f"the count of entry {id_} (row {row}, head {head}) grew by {grown}; {came} tokens landed there"
                    )
            assert row in written or lanes == before, f"nothing was written to row {row}, and it changed"

    @invariant()
    def capacity_holds(self) -> None:
        held, room = self.bank.lengths, self.bank.capacity
        assert room is None or (held <= np.asarray(room)).all(), f"a lane holds {held.max(initial=0)} entries"

    @invariant()
    def nothing_changes_by_itself(self) -> None:
        now = state_of(self.bank)
        assert now == self.committed, "what is not committed shows, or something changed by itself"
        assert now == state_of(self.twin), "banks that were told the same hold different entries"
        for snapshot, then in self.held:
            assert state_of(snapshot) == then, "a snapshot changed"

    @invariant()
    def what_ended_is_gone(self) -> None:
        for row, gone in enumerate(self.deleted):
            for head, lane in enumerate(self.committed[row]):
                back = gone & lane.keys()
                assert not back, f"entries {sorted(back)} of row {row}, head {head} ended, and are there"

    @invariant()
    def reads_see_what_is_live_and_nothing_else(self) -> None:
        rng = np.random.default_rng(len(self.held))
        rows, heads, dim = self.bank.rows, self.bank.heads, self.bank.key_dim
        queries = rng.standard_normal((rows, heads, 1, dim)).astype(np.float32)
        out, lse = self.bank.attend(queries, None, scale=1.0)
        for row, head in np.ndindex(rows, heads):
            lane = self.committed[row][head]
            if not lane:
                assert lse[row, head, 0] == -np.inf, "an empty lane weighs something"
                continue
            keys = np.array([np.frombuffer(key, np.float32) for key, _, _ in lane.values()], np.float64)
            values = np.array([np.frombuffer(value, np.float32) for _, value, _ in lane.values()], np.float64)
            logits = keys @ queries[row, head, 0].astype(np.float64)
            top = logits.max()
            weights = np.exp(logits - top)
            want = weights @ values / weights.sum()
            near = 1e-4 * (1 + np.abs(values).max())
            assert np.abs(out[row, head, 0] - want).max() <= near, "attention is not that over the live entries"
            assert abs(lse[row, head, 0] - (top + np.log(weights.sum()))) <= 1e-3 * (1 + abs(top)), "lse is off"
