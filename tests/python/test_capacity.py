"""Capacities that differ by head, and the schedule that shares a budget among layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnemex as mx

DIM = 3
STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 20)),
    st.tuples(st.just("delete"), st.integers(0, 30)),
    st.tuples(st.just("truncate"), st.integers(0, 9)),
    st.tuples(st.sampled_from(["copy", "save", "fork", "reorder", "snapshot"]), st.just(0)),
)


def ids_of(bank) -> list[list[list[int]]]:
    """List the live ids of each row and head, by a search that finds everything."""
    hits = bank.search(np.zeros((bank.rows, bank.heads, 1, DIM), np.float32), 99)
    found = [[sorted(int(i) for i in head[0] if i >= 0) for head in row] for row in hits.ids]
    assert (hits.valid == (hits.ids >= 0)).all()
    assert [[len(ids) for ids in row] for row in found] == bank.lengths.tolist()
    return found


@settings(max_examples=150, deadline=None)
@given(
    capacity=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    steps=st.lists(STEP, min_size=3, max_size=20),
    seed=st.integers(0, 99),
)
def test_each_head_keeps_as_many_of_the_newest_as_it_may(capacity, steps, seed, tmp_path_factory):
    rng, heads = np.random.default_rng(seed), len(capacity)
    bank = mx.Bank(rows=2, heads=heads, key_dim=DIM, value_dim="key", capacity=capacity)
    rows, ends, held = [[[] for _ in capacity] for _ in range(2)], [0, 0], []
    for number, (what, n) in enumerate(steps):
        if what == "write":
            receipt = bank.write(rng.standard_normal((len(rows), heads, n, DIM), np.float32))
            for row, lanes in enumerate(rows):
                ids = list(range(ends[row], ends[row] + n))
                ends[row] += n
                for head, room in enumerate(capacity):
                    lanes[head] = (lanes[head] + ids)[-room:]
                    assert receipt.landed[0][row, head].tolist() == [i if i in lanes[head] else -1 for i in ids]
        elif what == "delete":
            gone = [i for i in range(max(ends)) if rng.random() < n / 100]
            bank.delete(gone)
            rows = [[[i for i in lane if i not in gone] for lane in lanes] for lanes in rows]
        elif what == "truncate":
            bank.truncate([max(0, end - n) for end in ends])
            rows = [[[i for i in lane if i < end - n] for lane in lanes] for lanes, end in zip(rows, ends, strict=True)]
        elif what == "copy":
            bank = bank.copy()
        elif what == "save":
            folder = tmp_path_factory.mktemp("capacity") / str(number)
            bank.save(folder)
            bank = mx.open(folder)
        elif what == "fork" and len(rows) < 4:
            bank.fork(2)
            rows = [[list(lane) for lane in lanes] for lanes in rows for _ in range(2)]
            ends = [end for end in ends for _ in range(2)]
        elif what == "reorder":
            bank.reorder([1, 0])
            rows, ends = [[list(lane) for lane in rows[at]] for at in (1, 0)], [ends[1], ends[0]]
        elif what == "snapshot":
            held.append((bank.snapshot(), [[list(lane) for lane in lanes] for lanes in rows]))
        assert bank.capacity == tuple(capacity)
        assert ids_of(bank) == rows
    for snapshot, was in held:
        assert ids_of(snapshot) == was


@pytest.mark.parametrize("evict", ["lru", "random", mx.AttentionMass(recent=1), mx.Reservoir(sinks=1), "retention"])
def test_every_policy_fills_each_head_to_its_own(evict):
    bank = mx.Bank(rows=2, heads=3, key_dim=DIM, capacity=np.array([2, 9, 5]), evict=evict)
    for n in (1, 7, 30):
        bank.write(np.ones((2, 3, n, DIM), np.float32))
    assert bank.lengths.tolist() == [[2, 9, 5]] * 2


def test_what_it_is_is_told():
    bank = mx.Bank(rows=2, heads=2, key_dim=4, capacity=[4, 1200], evict="lru")
    bank.write(np.ones((2, 2, 10, 4), np.float32))
    stats = bank.stats()
    assert stats.capacity == bank.capacity == bank.copy().capacity == bank.snapshot().capacity == (4, 1200)
    assert stats.used == 28 / 2408
    assert "4 to 1,200 entries per lane, 1.2 % used" in bank.describe()
    assert "4 to 1,200" in mx.Memory({3: bank}).describe()
    full = mx.Bank(heads=2, key_dim=4, value_dim=4, capacity=1200)
    small = mx.Bank(heads=2, key_dim=4, value_dim=4, capacity=[1200, 60])
    for each in (full, small):
        each.write(np.ones((1, 2, 1200, 4), np.float32), np.ones((1, 2, 1200, 4), np.float32))
    assert small.nbytes < 0.7 * full.nbytes


def test_padding_has_no_weight():
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((2, 1, 2, 30, 4), np.float32)
    bank = mx.Bank(heads=2, key_dim=4, value_dim=4, capacity=[3, 20])
    bank.write(keys, values)
    queries = rng.standard_normal((1, 2, 5, 4), np.float32)
    for k in (None, 20, mx.Window(20)):
        out, lse = bank.attend(queries, k)
        for head, room in enumerate((3, 20)):
            weights = np.exp(queries[0, head] @ keys[0, head, -room:].T / 2)
            np.testing.assert_allclose(
                out[0, head], weights @ values[0, head, -room:] / weights.sum(1)[:, None], rtol=1e-4
            )
            np.testing.assert_allclose(lse[0, head], np.log(weights.sum(1)), rtol=1e-4)


def test_a_capacity_that_refuses_does_so_by_the_fullest_head():
    bank = mx.Bank(heads=2, key_dim=DIM, capacity=[5, 3], evict="error")
    bank.write(np.ones((1, 2, 3, DIM), np.float32))
    with pytest.raises(mx.CapacityError, match=r"head 1; 1 more pass its capacity of 3"):
        bank.stage(np.ones((1, 2, 1, DIM), np.float32))
    assert bank.lengths.tolist() == [[3, 3]]
    bank.delete([0])
    bank.write(np.ones((1, 2, 1, DIM), np.float32))
    assert ids_of(bank) == [[[1, 2, 3], [1, 2, 3]]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mx.Bank(heads=2, key_dim=4, capacity=[4]), "1 numbers for heads=2"),
        (lambda: mx.Bank(heads=2, key_dim=4, capacity=[]), "0 numbers for heads=2"),
        (lambda: mx.Bank(heads=2, key_dim=4, capacity=[4, 0]), r"capacity\[1\]=0"),
        (lambda: mx.Bank(heads=2, key_dim=4, capacity=[4, None]), r"capacity\[1\]=None"),
        (lambda: mx.Bank(heads=2, key_dim=4, capacity=[[4, 4]]), r"capacity\[0\]"),
        (lambda: mx.Bank(heads=2, key_dim=4, capacity="many"), "capacity='many'"),
        (lambda: mx.Bank(heads=2, key_dim=4, capacity=np.array([4.0, 5.0])), r"capacity\[0\]"),
        (lambda: mx.Bank(heads=2, key_dim=4, capacity=[4, 2**63]), r"capacity\[1\]"),
        (lambda: mx.Bank(heads=2, key_dim=4, capacity=[9, 4], evict=mx.Lru(sinks=2, recent=2)), "capacity of 4"),
        (lambda: mx.pyramid(0, 9), "n_layers"),
        (lambda: mx.pyramid(4, 64), "window of 64"),
        (lambda: mx.pyramid(4, 70), "mean=84"),
        (lambda: mx.pyramid(4, 9.5, window=2), "mean"),
        (lambda: mx.pyramid(4, 100, beta=0.5), "beta"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, says):
    with pytest.raises(mx.Error, match=says):
        make()


@pytest.mark.parametrize("forged", [[7], [7, 7, 7], [7, 0], [7, 5], ["7", 7], [7.5, 7], {}])
def test_a_file_with_other_capacities_is_refused(forged, tmp_path):
    import hashlib

    bank = mx.Bank(heads=2, key_dim=4, capacity=[7, 9])
    bank.write(np.ones((1, 2, 9, 4), np.float32))
    bank.save(tmp_path / "bank")
    manifest = tmp_path / "bank" / "manifest.json"
    body = json.loads(manifest.read_bytes())["body"]
    assert body["banks"][0]["config"]["capacity"] == [7, 9]
    body["banks"][0]["config"]["capacity"] = forged
    text = json.dumps(body).encode()
    manifest.write_bytes(b'{"checksum":"' + hashlib.sha256(text).hexdigest().encode() + b'","body":' + text + b"}\n")
    with pytest.raises(mx.FormatError):
        mx.open(tmp_path / "bank")


@settings(max_examples=300, deadline=None)
@given(
    n=st.integers(1, 100), window=st.integers(0, 200), beyond=st.integers(1, 5000), beta=st.sampled_from([1, 2, 14, 20])
)
def test_a_pyramid_spends_its_budget_exactly_and_falls_linearly(n, window, beyond, beta):
    mean = window + max(beyond, beta)
    each = mx.pyramid(n, mean, window=window, beta=beta)
    assert len(each) == n
    assert sum(each) == n * mean
    assert list(each) == sorted(each, reverse=True)
    least = (mean - window) / beta
    line = window + np.linspace(2 * (mean - window) - least, least, n) if n > 1 else np.array([mean])
    assert np.abs(np.array(each) - line).max() <= 1
    assert each[-1] > window
