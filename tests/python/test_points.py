"""Conformance points of the bank itself, each under its number: commits, threads, processes, files, capacity."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest

import mnemex as mx

ROWS, HEADS, DIM = 2, 2, 8


def gauss(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def filled(n=200, **options):
    bank = mx.Bank(rows=ROWS, heads=HEADS, key_dim=DIM, value_dim=DIM, **options)
    bank.write(gauss(ROWS, HEADS, n, DIM), gauss(ROWS, HEADS, n, DIM, seed=1))
    return bank


def test_point_20_what_is_staged_is_seen_by_nobody_and_dropped_whole():
    bank, q = filled(), gauss(ROWS, HEADS, 3, DIM, seed=2)
    before = bank.attend(q, 5)
    bank.stage(gauss(ROWS, HEADS, 4, DIM, seed=3) * 100, gauss(ROWS, HEADS, 4, DIM, seed=4))
    with pytest.raises(mx.Error):
        bank.stage(np.full((ROWS, HEADS, 1, DIM), np.nan, np.float32), np.zeros((ROWS, HEADS, 1, DIM), np.float32))
    assert (bank.attend(q, 5).out == before.out).all()
    bank.rollback()
    bank.commit()
    assert (bank.attend(q, 5).out == before.out).all()


def test_point_21_threads_that_read_while_one_writes_see_whole_versions():
    memory = mx.Memory({i: mx.Bank(heads=HEADS, key_dim=DIM, value_dim=DIM) for i in range(2)})
    q, wrong, done = gauss(1, HEADS, 3, DIM, seed=5), [], threading.Event()

    def read():
        while not done.is_set():
            snapshot = memory.snapshot()
            answers = [snapshot[i].attend(q, 4).out for i in (0, 1)]
            if len(snapshot[0]) != len(snapshot[1]) or not (answers[0] == answers[1]).all():
                wrong.append(snapshot)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for step in range(60):
        for i in (0, 1):
            memory.stage(i, gauss(1, HEADS, 3, DIM, seed=step), gauss(1, HEADS, 3, DIM, seed=step + 1))
        memory.commit()
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong


def _answer(bank, q, queue):
    queue.put(bank.attend(q, 5).out)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_point_22_a_forked_child_answers_as_its_parent():
    bank, q = filled(), gauss(ROWS, HEADS, 3, DIM, seed=6)
    want = bank.attend(q, 5).out
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_answer, args=(bank, q, queue))
    child.start()
    assert (queue.get(timeout=60) == want).all()
    child.join()
    assert child.exitcode == 0


def test_point_23_one_thread_and_many_give_the_same_ids_and_bits_with_ties():
    bank = mx.Bank(key_dim=DIM, value_dim=DIM)
    keys = np.repeat(gauss(50, DIM, seed=7), 40, 0)
    bank.write(keys, gauss(2000, DIM, seed=8))
    q = gauss(9, DIM, seed=9)
    one, many = (bank.search(q, 70, threads=n) for n in (1, 4))
    assert (one.ids == many.ids).all()
    assert (one.scores == many.scores).all()
    ties = one.scores[:, 1:] == one.scores[:, :-1]
    assert ties.any()
    assert (np.diff(one.ids)[ties] > 0).all()


def test_point_24_a_saved_bank_answers_with_the_same_bits_and_damage_is_found(tmp_path):
    bank, q = filled(), gauss(ROWS, HEADS, 3, DIM, seed=10)
    bank.save(tmp_path / "bank")
    want, got = bank.attend(q, 5), mx.open(tmp_path / "bank").attend(q, 5)
    assert (got.out == want.out).all()
    assert (got.lse == want.lse).all()
    largest = max((p for p in (tmp_path / "bank").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    sound = largest.read_bytes()
    for damaged in (sound[:-7], sound[: len(sound) // 2] + b"\x01" + sound[len(sound) // 2 + 1 :], b""):
        if damaged != sound:
            largest.write_bytes(damaged)
            with pytest.raises(mx.Error):
                mx.open(tmp_path / "bank")


def test_point_25_fifo_keeps_the_newest_and_ids_and_values_never_part():
    bank = mx.Bank(key_dim=1, value_dim=1, capacity=1000)
    for start in range(0, 100_000, 2500):
        number = np.arange(start, start + 2500, dtype=np.float32)[:, None]
        bank.write(number, -number)
        hits = bank.search(np.ones((1, 1), np.float32), 1000)
        assert sorted(hits.ids[0]) == list(range(start + 1500, start + 2500))
        keys, values = bank.gather(hits)
        assert (keys[..., 0] == hits.ids).all()
        assert (values == -keys).all()
    full = mx.Bank(key_dim=1, value_dim=1, capacity=3, evict="error")
    full.write(np.ones((3, 1), np.float32), np.ones((3, 1), np.float32))
    with pytest.raises(mx.Error):
        full.write(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    assert len(full) == 3
