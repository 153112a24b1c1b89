"""Conformance points 20 to 22: threads and processes that use banks at once, and what of the machine a call takes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import mnemex as mx

HEADS, DIM = 2, 8


def gauss(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def large():
    """Make a bank and queries for which the threads of the pool are woken."""
    bank = mx.Bank(key_dim=32, value_dim=32, threads=2)
    bank.write(gauss(20_000, 32), gauss(20_000, 32, seed=1))
    return bank, gauss(100, 32, seed=2)


def answer(bank, q):
    """Search and attend, as bytes."""
    reads = (bank.search(q, 9), bank.attend(q, 9), bank.attend(q, None))
    return [x.tobytes() for read in reads for x in read]


def test_point_20_threads_that_read_while_one_writes_see_whole_versions():
    memory = mx.Memory({i: mx.Bank(heads=HEADS, key_dim=DIM, value_dim=DIM) for i in range(2)})
    q, wrong, seen, done = gauss(1, HEADS, 3, DIM, seed=5), [], [], threading.Event()

    def read():
        while not done.is_set():
            snapshot = memory.snapshot()
            answers = [snapshot[i].attend(q, 4).out for i in (0, 1)]
            seen.append(len(snapshot[0]))
            if len(snapshot[0]) != len(snapshot[1]) or not (answers[0] == answers[1]).all():
                wrong.append(snapshot)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    step = 0
    while step < 60 or (len(seen) < 60 and any(reader.is_alive() for reader in readers)):
        for i in (0, 1):
            memory.stage(i, gauss(1, HEADS, 3, DIM, seed=step), gauss(1, HEADS, 3, DIM, seed=step + 1))
        memory.commit()
        step += 1
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(seen) >= 60
    assert all(n % (3 * HEADS) == 0 for n in seen)


def test_point_21_threads_that_search_at_once_get_the_answer_of_one():
    bank, q = large()
    want, together = answer(bank, q), threading.Barrier(6)

    def job(i):
        together.wait(60)
        return [answer(bank if i % 2 else bank.snapshot(), q) for _ in range(5)]

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(job, range(6))) == [[want] * 5] * 6


CALLS = {
    "search": lambda bank, q: bank.search(q, 10, threads=1),
    "attend": lambda bank, q: bank.attend(q, 10, threads=1),
    "attend to all": lambda bank, q: bank.attend(q, None, threads=1),
    "write": lambda bank, q: bank.write(np.broadcast_to(q[:1], (400_000, 64)), np.broadcast_to(q[:1], (400_000, 64))),
}


@pytest.mark.parametrize("call", CALLS)
def test_point_21_python_goes_on_during_a_long_call(call):
    bank = mx.Bank(key_dim=64, value_dim=64)
    bank.write(gauss(50_000, 64), gauss(50_000, 64, seed=1))
    queries, counts = gauss(2000, 64, seed=2), []

    def counted():
        """Count in this thread while another one calls; how far, and whether no pause was half as long as the call."""
        span, started = [], threading.Event()

        def run():
            span.append(time.perf_counter())
            started.set()
            CALLS[call](bank, queries)
            span.append(time.perf_counter())

        other = threading.Thread(target=run)
        other.start()
        started.wait()
        count, pause, last = 0, 0.0, span[0]
        while len(span) < 2:
            now = time.perf_counter()
            count, pause, last = count + 1, max(pause, now - last), now
        other.join()
        return count, max(pause, span[1] - last) < (span[1] - span[0]) / 2

    # Were the interpreter held, a pause would be as long as the call, every time. Other processes cause some.
    for _ in range(5):
        counts.append(counted())
        if counts[-1][0] > 100 and counts[-1][1]:
            return
    pytest.fail(f"this thread stood still while the other one called: {counts}")


POOL = """
import os, sys, threading, numpy as np, mnemex as mx
from pathlib import Path
exec(sys.argv[1])
bank = mx.Bank(key_dim=32, value_dim=32); x = np.random.default_rng(0).standard_normal((20_000, 32), np.float32)
bank.write(x, x)
def read():
    for _ in range(2): bank.search(x[:40], 9, threads=16); bank.attend(x[:40], None, threads=16)
callers = [threading.Thread(target=read) for _ in range(4)]
for caller in callers: caller.start()
for caller in callers: caller.join()
names = [p.read_text() for p in Path("/proc/self/task").glob("*/comm")]
print(mx.build_info().threads, sum(name.startswith("mnemex-") for name in names))"""
"""Four threads that ask for sixteen each; prints the most threads of a call, and how many the pool has."""


def pool_of(setup="", **environment):
    kept = {name: value for name, value in os.environ.items() if name != "MNEMEX_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", POOL, setup],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(n) for n in done.stdout.split()]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_point_21_the_pool_is_as_large_as_configured_whatever_is_asked(n):
    # The thread that calls works too.
    assert pool_of(MNEMEX_NUM_THREADS=str(n)) == [n, n - 1]


def test_point_21_the_pool_keeps_to_the_processors_that_the_process_may_use():
    one = min(os.sched_getaffinity(0))
    assert pool_of(f"os.sched_setaffinity(0, {{{one}}})") == [1, 0]


@pytest.fixture
def one_processor():
    """Make a control group with the quota of one processor; gives the file that takes its processes."""
    first, second = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    if (first / "cpu.cfs_quota_us").is_file():
        group, limit = first / f"mnemex-{os.getpid()}", ("cpu.cfs_quota_us", "100000")
    else:
        group, limit = second / f"mnemex-{os.getpid()}", ("cpu.max", "100000 100000")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"the quota of a control group can be set by root alone ({error})")
    try:
        try:
            (group / limit[0]).write_text(limit[1])
        except OSError as error:
            pytest.skip(f"this system lets nobody set the quota of a control group ({error})")
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a quota of one processor changes nothing where one is")
def test_point_21_the_pool_keeps_to_the_quota_of_its_control_group(one_processor):
    assert pool_of() != [1, 0]
    assert pool_of(f"Path({str(one_processor)!r}).write_text(str(os.getpid()))") == [1, 0]


def _send(bank, q, queue):
    queue.put(answer(bank, q))


def _open_and_send(path, q, queue):
    queue.put(answer(mx.open(path), q))


def child(method, job, *args):
    """Run `job(*args, queue)` in a child; what it sent."""
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=job, args=(*args, queue))
    process.start()
    got = queue.get(timeout=120)
    process.join()
    assert process.exitcode == 0
    return got


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_point_22_a_forked_child_answers_as_its_parent_while_others_search():
    bank, q = large()
    want, done = answer(bank, q), threading.Event()  # the parent has a pool, which the child cannot use

    def read():
        while not done.is_set():
            answer(bank, q)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(5):
            assert child("fork", _send, bank, q) == want
    finally:
        done.set()
        reader.join()
    assert answer(bank, q) == want


def test_point_22_a_spawned_child_opens_what_was_saved_and_a_bank_is_not_sent(tmp_path):
    bank, q = large()
    for one in (bank, bank.snapshot()):
        with pytest.raises(mx.Unsupported, match="save"):
            child("spawn", _send, one, q)
    bank.save(tmp_path / "bank")
    assert child("spawn", _open_and_send, tmp_path / "bank", q) == answer(bank, q)
