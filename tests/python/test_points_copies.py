"""Conformance point 29: what a call copies, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import weakref

import numpy as np
import pytest

import mnemex as mx

GROWTH = """
import resource, sys, numpy as np, mnemex as mx
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
codec, rng = sys.argv[1], np.random.default_rng(0)
q, entries = (rng.standard_normal((1, 4, n, 64), np.float32) for n in (3, 1000))
def bank(n):
    bank = mx.Bank(heads=4, key_dim=64, value_dim=64, key_codec=codec, value_codec=codec)
    for _ in range(n): bank.write(*2 * [entries.astype(np.float16) if codec == "f16" else entries.round()])
    return bank
def reads(bank):
    for how in ({}, {"where": np.arange(0, 100_000, 3)}, {"where": ("id", ">", 500)}):
        bank.search(q, 8, **how); bank.attend(q, 8, **how); bank.attend(q, None, **how)
    bank.find(where=("id", "<", 3)); bank.snapshot(); bank.copy()
reads(bank(1))  # the pool, and what else is made once
large = bank(100)
before = peak(); reads(large); print(large.nbytes, peak() - before)"""


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
def test_point_29_reads_copy_nothing_of_what_is_stored(codec):
    # In small writes, so that no earlier peak hides what a read takes.
    done = subprocess.run([sys.executable, "-c", GROWTH, codec], capture_output=True, text=True, check=True)
    stored, grown = map(int, done.stdout.split())
    assert stored > 100_000 * 4 * 2 * 64 * (4 if codec == "f32" else 2)
    assert grown < stored / 16


class Producer:
    """An array that is known by its DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


FORMS = {
    "contiguous": lambda x: x,
    "as a projection gives it": lambda x: np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3),
    "part of a wider one": lambda x: np.concatenate([x, x], -1)[..., : x.shape[-1]],
    "half": lambda x: x.astype(np.float16),
    "DLPack": Producer,
    "backwards": lambda x: np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_point_29_arrays_are_read_where_they_are(form):
    x = np.random.default_rng(1).standard_normal((2, 4, 2000, 16), np.float32)
    x = x.astype(np.float16).astype(np.float32)
    given, bank = FORMS[form](x), mx.Bank(rows=2, heads=4, key_dim=16, value_dim="key")
    tracemalloc.start()
    try:
        bank.write(given)
        assert tracemalloc.get_traced_memory()[1] < x.nbytes / 4
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = bank.attend(given, 3)
        assert tracemalloc.get_traced_memory()[1] - before < x.nbytes / 4
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(bank.gather(np.tile(np.arange(2000), (2, 1)))[0], x)
    plain = mx.Bank(rows=2, heads=4, key_dim=16, value_dim="key")
    plain.write(x if form != "half" else x.astype(np.float16))
    assert found.out.tobytes() == plain.attend(x, 3).out.tobytes()


def test_point_29_what_was_given_is_let_go_after_the_call_and_answers_live_on():
    x = np.random.default_rng(2).standard_normal((50, 8), np.float32)
    bank, held = mx.Bank(key_dim=8, value_dim="key"), []
    bank.write(x)
    want = bank.attend(x, 4)
    for call in (bank.write, lambda array: bank.search(array, 4), lambda array: bank.attend(array, 4)):
        array = x.copy()
        held.append(weakref.ref(array))
        call(Producer(array))
        array.fill(np.nan)
        del array
    assert [ref() for ref in held] == [None] * 3
    bank.truncate(50)
    found = bank.attend(x, 4)
    out, copy = found.out, found.out.copy()
    del found
    bank.reset()
    bank.write(np.zeros_like(x))
    assert out.tobytes() == copy.tobytes() == want.out.tobytes()


def test_point_29_read_only_arrays_are_read_and_not_written():
    x = np.random.default_rng(3).standard_normal((50, 8), np.float32)
    side = {"mask": np.arange(50) % 7 > 0, "labels": np.arange(50), "positions": np.arange(50) * 2}
    how = {"before": np.arange(50), "where": np.arange(0, 40, 2)}
    banks = [mx.Bank(key_dim=8, value_dim="key") for _ in range(2)]
    banks[0].write(x, **side)
    given = [x, *side.values(), *how.values()]
    bits = [array.tobytes() for array in given]
    want = banks[0].attend(x, 3, **how)
    for array in given:
        array.flags.writeable = False
    banks[1].write(x, **side)
    got = banks[1].attend(x, 3, **how)
    banks[1].delete(how["where"])
    banks[1].truncate(x.shape[0])
    assert [array.tobytes() for array in got] == [array.tobytes() for array in want]
    assert [array.tobytes() for array in given] == bits
