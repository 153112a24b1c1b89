"""Changes of many banks at once, while other threads write and read: a reader sees all layers changed, or none."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mnemex as mx

LAYERS = (0, 1, 2)
TIMES = 1000
"""Changes, and reads beside them, at least."""


@pytest.fixture(autouse=True)
def crowded():
    """Let threads take turns every ten microseconds: whatever can come between two steps does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def memory_of(entries):
    """Make a memory whose layers hold the same entries."""
    memory = mx.Memory({layer: mx.Bank(rows=2, key_dim=4, value_dim="key", capacity=100) for layer in LAYERS})
    write(memory, entries)
    return memory


def write(memory, n):
    """Stage the same tokens in every layer, and commit. What a change takes back before the commit, all layers lack."""
    keys = np.random.default_rng(n).standard_normal((2, 1, n, 4), np.float32)
    for layer in LAYERS:
        memory.stage(layer, keys)
    memory.commit()


def truncate(memory, rng):
    row = int(rng.integers(0, 2))
    memory.truncate(int(memory[0].find()[row][5:].max(initial=0)), rows=[row])


def reset(memory, rng):
    memory.reset(rows=[int(rng.integers(0, 2))])


def delete(memory, rng):
    row = int(rng.integers(0, 2))
    memory.delete(memory[0].find()[row][:5], rows=[row])


def reorder(memory, rng):
    memory.reorder(rng.integers(0, 2, 2))


CHANGES = {"truncate": truncate, "reset": reset, "delete": delete, "reorder": reorder}


def layers_differ(snapshot, query):
    """Tell whether a snapshot of the memory has layers of different content."""
    seen = [
        ([ids.tolist() for ids in snapshot[layer].find()], snapshot[layer].attend(query, 3).out.tobytes())
        for layer in LAYERS
    ]
    return any(other != seen[0] for other in seen[1:])


@pytest.mark.parametrize("change", CHANGES)
def test_readers_see_every_layer_changed_or_none(change):
    memory, query = memory_of(40), np.ones((2, 1, 1, 4), np.float32)
    done, refused, changed, read = threading.Event(), [], [], []

    def write_on():
        step = 0
        while not done.is_set():
            step += 1
            write(memory, 1 + step % 7)

    def change_on():
        rng = np.random.default_rng(1)
        while not done.is_set():
            # All but a deletion are refused while anything is staged, in one layer or in all.
            try:
                CHANGES[change](memory, rng)
                changed.append(change)
            except mx.StateError:
                refused.append(change)

    def read_on():
        while not done.is_set() and min(len(changed), len(read)) < TIMES:
            read.extend(layers_differ(taken, query) for taken in (memory.snapshot(), memory.copy()))

    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(job) for job in (write_on, change_on)]
        readers = [threads.submit(read_on) for _ in range(2)]
        try:
            for reader in readers:
                reader.result(120)
        finally:
            done.set()
    for job in others:
        job.result()
    assert min(len(changed), len(read)) >= TIMES
    assert not any(read)
    assert not refused or change != "delete"
    assert not layers_differ(memory.snapshot(), query)


def test_a_change_that_one_layer_refuses_is_seen_by_no_reader():
    memory, query = memory_of(40), np.ones((2, 1, 1, 4), np.float32)
    memory.stage(2, np.ones((2, 1, 1, 4), np.float32))
    done, seen = threading.Event(), []

    def read_on():
        while not done.is_set():
            snapshot = memory.snapshot()
            assert not layers_differ(snapshot, query)
            seen.append(tuple(len(snapshot[layer]) for layer in LAYERS))

    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(read_on)
        try:
            while len(seen) < TIMES and not reader.done():
                for refused in (lambda: memory.truncate(3), memory.reset, lambda: memory.fork(2)):
                    with pytest.raises(mx.StateError, match="staged"):
                        refused()
        finally:
            done.set()
        reader.result()
    assert set(seen) == {(80, 80, 80)}
