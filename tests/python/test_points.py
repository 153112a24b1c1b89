"""Conformance points of the bank itself, each under its number: merging, commits, ties, files, capacity."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import mnemex as mx

ROWS, HEADS, DIM = 2, 2, 8
KEPT = Path(__file__).parent / "kept"
"""A memory as each release saved it, by `kept/write.py`."""


def gauss(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def filled(n=200, **options):
    bank = mx.Bank(rows=ROWS, heads=HEADS, key_dim=DIM, value_dim=DIM, **options)
    bank.write(gauss(ROWS, HEADS, n, DIM), gauss(ROWS, HEADS, n, DIM, seed=1))
    return bank


def folded(states, nested):
    """Merge states as a nested tuple of their numbers says."""
    if isinstance(nested, int):
        return states[nested]
    one, two = (folded(states, part) for part in nested)
    return mx.merge(*one, *two)


@pytest.mark.parametrize("spread", [1.0, 30.0, 1e4])
def test_point_11_merging_is_associative_and_order_changes_the_last_bits_alone(spread):
    rng = np.random.default_rng(11)
    outs, lses = gauss(4, 50, DIM, seed=12), rng.uniform(-spread, spread, (4, 50)).astype(np.float32)
    lses[1, :10] = lses[2, 5:15] = lses[3] = -np.inf  # one side is empty, both are, and a state is empty everywhere
    states = list(zip(outs, lses, strict=True))
    states[0] = (outs[0], np.where(np.arange(50) < 3, -np.inf, lses[0]).astype(np.float32))
    states[2] = (outs[2], np.where(np.arange(50) < 3, -np.inf, states[2][1]).astype(np.float32))  # nobody has the first
    wide = np.stack([lse for _, lse in states]).astype(np.float64)
    top = np.where(np.isneginf(wide.max(0)), 0, wide.max(0))
    weights = np.exp(wide - top)
    total = weights.sum(0)
    with np.errstate(divide="ignore"):
        want_lse = np.log(total) + top
    want = (weights[..., None] * outs).sum(0) / np.where(total == 0, 1, total)[:, None]
    # One unit in the last place of a log-sum-exp for each of the three merges, and what it moves the weights by.
    unit = 3 * np.spacing(np.float32(np.abs(wide[np.isfinite(wide)]).max()))
    for order in itertools.permutations(range(4)):
        a, b, c, d = order
        for nested in ((((a, b), c), d), ((a, b), (c, d)), (a, (b, (c, d)))):
            out, lse = folded(states, nested)
            assert np.isneginf(lse[:3]).all()
            assert (out[:3] == 0).all()
            assert (np.abs(lse[3:] - want_lse[3:]) <= unit).all()
            assert (np.abs(out - want) <= (unit + 12 * np.finfo(np.float32).eps) * np.abs(outs).max()).all()


def test_point_11_the_log_sum_exp_is_natural_and_others_are_converted_by_a_factor():
    keys, values, q = gauss(60, DIM), gauss(60, DIM, seed=1), gauss(5, DIM, seed=2)
    whole, first = (mx.Bank(key_dim=DIM, value_dim=DIM) for _ in range(2))
    whole.write(keys, values)
    first.write(keys[:30], values[:30])
    logits = q @ keys[30:].T * DIM**-0.5
    base_2 = np.log2(np.exp(logits).sum(-1))  # as libraries that work with powers of two give it
    weights = np.exp2(logits / np.log(2) - base_2[:, None])
    want, told = whole.attend(q, None), first.attend(q, None)
    out, lse = mx.merge(*told, (weights @ values[30:]).astype(np.float32), (base_2 * np.log(2)).astype(np.float32))
    np.testing.assert_allclose(out, want.out, atol=1e-6)
    np.testing.assert_allclose(lse, want.lse, atol=1e-6)
    unconverted, _ = mx.merge(*told, (weights @ values[30:]).astype(np.float32), base_2.astype(np.float32))
    assert np.abs(unconverted - want.out).max() > 1e-2


def test_point_20_what_is_staged_is_seen_by_nobody_and_dropped_whole():
    bank, q = filled(), gauss(ROWS, HEADS, 3, DIM, seed=2)
    before = bank.attend(q, 5)
    ids = bank.stage(gauss(ROWS, HEADS, 4, DIM, seed=3) * 100, gauss(ROWS, HEADS, 4, DIM, seed=4))
    with pytest.raises(mx.NonFinite):
        bank.stage(np.full((ROWS, HEADS, 1, DIM), np.nan, np.float32), np.zeros((ROWS, HEADS, 1, DIM), np.float32))
    assert (bank.attend(q, 5).out == before.out).all()
    assert (bank.snapshot().attend(q, 5).out == before.out).all()
    copied = bank.copy()
    copied.commit()
    assert (copied.attend(q, 5).out == before.out).all()
    bank.rollback()
    bank.commit()
    assert (bank.attend(q, 5).out == before.out).all()
    with pytest.raises(mx.Error):
        bank.gather(ids)


@pytest.mark.parametrize("how", ["search", "attend", "attend all"])
def test_point_23_one_thread_and_many_give_the_same_ids_and_bits_with_ties(how):
    # Enough of both that one lane is divided among threads.
    keys = np.repeat(gauss(500, DIM, seed=7), 40, 0)
    bank = mx.Bank(key_dim=DIM, value_dim=DIM)
    bank.write(keys, gauss(20_000, DIM, seed=8))
    q = gauss(100, DIM, seed=9)
    read = {
        "search": lambda n: bank.search(q, 70, threads=n),
        "attend": lambda n: bank.attend(q, 70, threads=n),
        "attend all": lambda n: bank.attend(q, None, threads=n),
    }[how]
    first = read(1)
    for threads in (1, 2, 3, 8):
        assert [x.tobytes() for x in read(threads)] == [x.tobytes() for x in first]
    if how == "search":
        ties = first.scores[:, 1:] == first.scores[:, :-1]
        assert ties.any()
        assert (np.diff(first.ids)[ties] > 0).all()


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
def test_point_24_a_saved_bank_answers_with_the_same_bits(codec, tmp_path):
    bank, q = filled(key_codec=codec, value_codec=codec), gauss(ROWS, HEADS, 3, DIM, seed=10)
    bank.delete(np.arange(20, 60), rows=[1])
    bank.save(tmp_path / "bank")
    opened = mx.open(tmp_path / "bank")
    for k in (5, None):
        want, got = bank.attend(q, k), opened.attend(q, k)
        assert (got.out == want.out).all()
        assert (got.lse == want.lse).all()
    assert [x.tobytes() for x in opened.search(q, 7)] == [x.tobytes() for x in bank.search(q, 7)]


def test_point_24_damage_to_any_file_is_found(tmp_path):
    filled().save(tmp_path / "bank")
    files = [path for path in (tmp_path / "bank").rglob("*") if path.is_file()]
    assert len(files) > 1
    for path in files:
        sound = path.read_bytes()
        middle = len(sound) // 2
        flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
        for damaged in (sound[:-1], sound[:middle], b"", flipped, sound + b"\0"):
            path.write_bytes(damaged)
            with pytest.raises(mx.Error):
                mx.open(tmp_path / "bank")
        path.unlink()
        with pytest.raises((mx.Error, FileNotFoundError)):
            mx.open(tmp_path / "bank")
        path.write_bytes(sound)
    mx.open(tmp_path / "bank")


@pytest.mark.parametrize("folder", sorted(path.name for path in KEPT.iterdir() if (path / "manifest.json").is_file()))
def test_point_24_what_an_older_version_saved_opens(folder):
    memory = mx.open(KEPT / folder)
    assert memory.layers == (0, 3)
    assert (memory.fingerprint, memory.next_position, memory.keys) == ("kept", 70, "plain")
    for layer, dtype in ((0, np.float32), (3, np.float16)):
        bank = memory[layer]
        ids = [np.r_[0:7, 10:70], np.r_[0:7, 10:50]]
        assert [found.tolist() for found in bank.find()] == [x.tolist() for x in ids]
        for row in range(2):
            keys, values, told = bank.gather(ids[row][None], rows=[row], columns=("label", "position", "page", "seen"))
            number = np.arange(2)[:, None] * 100 + ids[row][None] + row  # [heads, T]
            assert keys.dtype == dtype
            np.testing.assert_array_equal(keys[0], np.stack([number, -number, number % 7], -1))
            np.testing.assert_array_equal(values[0], np.stack([number % 5, number], -1))
            np.testing.assert_array_equal(told["label"][0], 1000 + ids[row])
            np.testing.assert_array_equal(told["position"][0], 2 * ids[row])
            np.testing.assert_array_equal(told["page"][0], ids[row] // 8)
            np.testing.assert_array_equal(told["seen"][0], ids[row] % 2 == 0)


def test_point_25_fifo_keeps_the_newest_and_ids_and_values_never_part():
    """A million adds in batches of any size: each lap of the capacity ends elsewhere in a batch and in a block."""
    bank, rng, end = mx.Bank(key_dim=1, value_dim=1, capacity=1000), np.random.default_rng(25), 0
    while end < 1_000_000:
        n = int(rng.integers(1, 6000))
        number = np.arange(end, end + n, dtype=np.float32)[:, None]
        assert bank.stage(number, -number)[[0, -1]].tolist() == [end, end + n - 1]
        bank.commit()
        end += n
        hits = bank.search(np.ones((1, 1), np.float32), 1000)
        assert hits.ids[0][hits.valid[0]].tolist() == list(range(max(0, end - 1000), end))[::-1]
        keys, values = bank.gather(hits)
        assert (keys[hits.valid][:, 0] == hits.ids[hits.valid]).all()
        assert (values == -keys).all()
    assert len(bank) == 1000


def test_point_25_ids_that_were_evicted_are_reported_stale():
    bank, q = mx.Bank(key_dim=1, value_dim=1, capacity=4), np.ones((1, 1), np.float32)
    number = np.arange(6, dtype=np.float32)[:, None]
    bank.write(number[:4], number[:4])
    old, before = bank.search(q, 4), bank.snapshot()
    bank.write(number[4:], number[4:])
    with pytest.raises(mx.Error, match="0"):
        bank.gather(old)
    with pytest.raises(mx.Error, match="1"):
        bank.gather([1])
    assert bank.gather([2, 5])[0][:, 0].tolist() == [2.0, 5.0]
    assert before.gather(old)[0][0, :, 0].tolist() == [3.0, 2.0, 1.0, 0.0]
    bank.touch(old)
    bank.commit()
    assert bank.stats().touches == 2


def test_point_25_a_capacity_that_refuses_does_so_before_anything_changes():
    bank, number = mx.Bank(key_dim=1, value_dim=1, capacity=3, evict="error"), np.ones((1, 1), np.float32)
    bank.write(number.repeat(2, 0), number.repeat(2, 0))
    bank.stage(number, number)
    for n in (1, 5):
        with pytest.raises(mx.CapacityError, match="capacity of 3"):
            bank.stage(number.repeat(n, 0), number.repeat(n, 0))
    assert (len(bank), bank.version) == (2, 1)
    assert bank.commit().ids[0].tolist() == [2]
    with pytest.raises(mx.CapacityError):
        bank.write(number, number)
    assert (len(bank), bank.version) == (3, 2)
    assert bank.find()[0].tolist() == [0, 1, 2]
