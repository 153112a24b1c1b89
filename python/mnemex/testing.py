"""What must hold for every policy, as one suite: `check_policy` runs it over yours, and this project over its own.

Two banks do the same in random order, one of them on a second thread, saved, opened and copied on the way; so what a
policy keeps outside the bank, or decides by chance, shows. Needs hypothesis.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mnemex as mx
from mnemex.policy import is_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Lane = dict[int, tuple[bytes, bytes, int]]
    State = list[list[Lane]]

MOST_ROWS = 4


def check_policy(
    write: Any = "append",  # noqa: ANN401 - whatever `Bank(write=)` takes
    evict: Any = "fifo",  # noqa: ANN401 - whatever `Bank(evict=)` takes
    *,
    rows: int = 2,
    heads: int = 2,
    key_dim: int = 3,
    value_dim: int = 2,
    capacity: int = 6,
    columns: Mapping[str, str] | None = None,
    examples: int = 30,
    steps: int = 25,
    seed: int = 0,
    bank: Callable[..., mx.Bank] = mx.Bank,
) -> None:
    """Hold a policy against what must be true of each, over random streams; the smallest failing one is shown.

    After every step: no lane holds more than `capacity`, also as seen by a reader in the middle of a write; counts grow
    by the tokens that landed in an entry and by nothing else (with `MergeAdjacent` and `Cluster` those of a lane, all
    together); `Receipt.landed` names live entries of the token's lane;
    rows that nothing was written to are as they were; the same stream gives the same bits on one thread and on two,
    through `save` and `open`, `copy`, `fork` and `reorder`; a snapshot never changes; an entry that was deleted is
    found by no read, and what reads answer is attention over the entries that are live.

    Parameters
    ----------
    write, evict
        As for `Bank`: parts, names, or objects with `plan`.
    rows, heads, key_dim, value_dim, capacity, columns
        Of the banks. Columns get random numbers.
    examples, steps
        Streams, and steps of each.
    seed
        Of the streams.
    bank
        What makes the banks; tests of the suite itself give one that is broken.

    Raises
    ------
    AssertionError
        What does not hold, after the steps that show it.
    MissingDependency
        hypothesis is not installed.
    """
    try:
        from hypothesis import HealthCheck, Phase, settings
        from hypothesis import seed as seeded
        from hypothesis.errors import Flaky
        from hypothesis.stateful import run_state_machine_as_test
    except ImportError as error:
        raise mx.MissingDependency(f"mnemex.testing needs hypothesis ({error}): pip install hypothesis") from error
    from mnemex._conformance import machine

    def make(threads: int) -> mx.Bank:
        return bank(
            rows=rows,
            heads=heads,
            key_dim=key_dim,
            value_dim=value_dim,
            capacity=capacity,
            write=write,
            evict=evict,
            columns=columns,
            threads=threads,
        )

    watched(make(1), writes=20)
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    # A policy that has to make room by itself can do so for as many tokens as a lane holds.
    most = capacity if is_policy(evict) else None
    regroups = isinstance(write, (mx.MergeAdjacent, mx.Cluster))
    try:
        run_state_machine_as_test(
            seeded(seed)(machine(make, Reopen(write, evict), most, regroups=regroups)), settings=chosen
        )
    except Flaky as error:
        raise AssertionError(
            "the same steps ended otherwise when they were repeated: the policy draws numbers of its own, or keeps "
            "something outside the bank"
        ) from error


class Reopen:
    """Saves a bank and opens it again, with its policy where that is one in Python."""

    def __init__(self, write: object, evict: object) -> None:
        self._given = {name: part for name, part in (("write", write), ("evict", evict)) if is_policy(part)}

    def __call__(self, bank: mx.Bank) -> mx.Bank:
        """Save and open."""
        with tempfile.TemporaryDirectory() as folder:
            bank.save(Path(folder) / "bank")
            opened = mx.open(Path(folder) / "bank", threads=1, **self._given)  # type: ignore[arg-type]
        assert isinstance(opened, mx.Bank)
        opened.__class__ = type(bank)
        return opened


def watched(bank: mx.Bank, *, writes: int) -> None:
    """Write while another thread counts: no reader may see more than the capacity."""
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(int(bank.lengths.max(initial=0)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        rng = np.random.default_rng(0)
        for _ in range(writes):
            n = min(5, capacity_of(bank) or 5)  # a policy that makes room by itself has room for as many
            keys, values = tokens(rng, bank, bank.rows, n)
            bank.write(keys, values, columns=numbers(rng, bank, (bank.rows, n)) or None)
    finally:
        done.set()
        thread.join()
    most = capacity_of(bank)
    assert most is None or max(seen) <= most, f"a reader saw {max(seen)} entries in a lane; the capacity is {most}"


def numbers(rng: np.random.Generator, bank: mx.Bank, shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Draw numbers for the columns that the caller gives: the bank fills those of pages itself."""
    given = {name: dtype for name, dtype in bank.columns.items() if name != "page"}
    return {name: rng.integers(0, 5, shape).astype(dtype) for name, dtype in given.items()}


def capacity_of(bank: mx.Bank) -> int | None:
    """Give the entries of the largest lane."""
    return max(bank.capacity) if isinstance(bank.capacity, tuple) else bank.capacity


def tokens(
    rng: np.random.Generator, bank: mx.Bank, rows: int, n: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw keys that crowd around a few centres, some of them equal, and values."""
    centres = np.random.default_rng(7).standard_normal((3, bank.key_dim))
    near = centres[rng.integers(0, 3, (rows, bank.heads, n))]
    keys = (near + 0.1 * rng.integers(-2, 3, near.shape)).astype(np.float32)
    return keys, rng.standard_normal((rows, bank.heads, n, bank.value_dim or 0)).astype(np.float32)


def state_of(bank: mx.Bank | mx.Snapshot) -> State:
    """Read every lane by reading: key and value as bytes, and count, by id."""
    queries = np.zeros((bank.rows, bank.heads, 1, bank.key_dim), np.float32)
    hits = bank.search(queries, max(1, int(bank.lengths.max(initial=0))))
    counts: NDArray[np.int64] = np.ones(hits.ids.shape, np.int64)
    if bank._native_snapshot().merges:
        keys, values, more = bank.gather(hits, columns=["count"])
        counts = np.asarray(more["count"], np.int64)
    else:
        keys, values = bank.gather(hits)
    lanes: State = [[{} for _ in range(bank.heads)] for _ in range(bank.rows)]
    for at in zip(*np.nonzero(hits.ids >= 0), strict=True):
        row, head = at[:2]
        value = b"" if values is None else values[at].tobytes()
        lanes[row][head][int(hits.ids[at])] = (keys[at].tobytes(), value, int(counts[at]))
    return lanes
