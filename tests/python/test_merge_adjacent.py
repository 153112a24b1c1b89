"""Merging of neighbours beside a plain model: every lane, bit for bit, after every step; and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnemex as mx
from plain_adjacent import AdjacentLane
from policy_streams import EVICTS, STEP, play, state_of

POLICIES = st.builds(
    mx.MergeAdjacent,
    n=st.integers(1, 4),
    segment=st.sampled_from([None, 4, 7, 18]),
    similarity=st.sampled_from(["cos", "dot"]),
    merge=st.sampled_from(["mean", "midpoint"]),
    beyond=st.sampled_from(["evict", "merge"]),
)


@settings(max_examples=250, deadline=None)
@given(
    policy=POLICIES,
    evict=EVICTS,
    metric=st.sampled_from(["dot", "cos", "l2"]),
    capacity=st.one_of(st.integers(5, 16), st.lists(st.integers(5, 16), min_size=2, max_size=2)),
    steps=st.lists(STEP, min_size=4, max_size=25),
    seed=st.integers(0, 99),
)
def test_a_bank_is_what_the_definition_says(policy, evict, metric, capacity, steps, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adjacent")
    play(policy, lambda head: AdjacentLane(policy, head), evict, metric, capacity, steps, seed, folder)


def test_a_segment_is_merged_when_it_is_full_however_it_arrived():
    keys = np.random.default_rng(0).standard_normal((60, 8), np.float32)
    policy = mx.MergeAdjacent(3, segment=20)
    states = []
    for sizes in ([60], [1] * 60, [19, 2, 25, 14]):
        bank = mx.Bank(key_dim=8, value_dim="key", write=policy)
        at = 0
        for size in sizes:
            bank.write(keys[at : at + size])
            at += size
            assert len(bank) == 3 * (at // 20) + at % 20
        states.append({id_: (key.tobytes(), int(n)) for id_, (key, _, n, _) in state_of(bank)[0][0].items()})
    assert states[0] == states[1] == states[2]
    assert sum(n for _, n in states[0].values()) == 60


def test_of_what_is_alike_the_neighbours_become_one_under_the_name_of_the_older():
    keys = np.array([[1, 0], [0, 1], [1, 0.1], [1, 0.2], [0, 1]], np.float32)
    bank = mx.Bank(key_dim=2, value_dim=1, write=mx.MergeAdjacent(4))
    receipt = bank.write(keys, np.arange(5, dtype=np.float32)[:, None], labels=[5, 6, 7, 8, 9])
    assert receipt.landed[0].tolist() == [0, 1, 2, 2, 4], "0 and 2 are as near, but 1 stands between them"
    stored, values, columns = bank.gather([2], columns=["count", "label", "log_weight"])
    np.testing.assert_allclose(stored, [[1, 0.15]], rtol=1e-6)
    assert (values.tolist(), columns["count"].tolist(), columns["label"].tolist()) == ([[2.5]], [2], [7])
    assert columns["log_weight"] == pytest.approx(np.log(2))
    assert bank.find(labels=[8])[0].tolist() == [], "the label of what was merged finds nothing"
    bank.delete([2])
    assert 2 not in bank.search(keys, 4).ids


def test_a_long_list_is_shortened_and_nothing_is_evicted():
    rng = np.random.default_rng(1)
    bank = mx.Bank(
        key_dim=4,
        value_dim="key",
        capacity=16,
        write=mx.MergeAdjacent(2, segment=18, similarity="dot", merge="midpoint", beyond="merge"),
    )
    for n in (100, 3, 300, 1, 77):
        receipt = bank.write(rng.standard_normal((n, 4), np.float32))
        assert receipt.evicted == 0
        assert len(bank) <= 16
        assert (receipt.landed[0] >= 0).all()
    assert sum(n for _, _, n, _ in state_of(bank)[0][0].values()) == 481


def test_what_a_token_replaces_is_nobodys_neighbour():
    bank = mx.Bank(key_dim=2, write=mx.MergeAdjacent(2, segment=4))
    bank.write(np.array([[1, 0], [1, 0], [0, 1]], np.float32), labels=[1, 2, 3])
    receipt = bank.write(np.array([[0, 1]], np.float32), labels=[2], on_duplicate="replace")
    assert receipt.landed[0].tolist() == [2]
    assert bank.find()[0].tolist() == [0, 2]


def test_an_entry_weighs_as_much_as_it_stands_for():
    rng = np.random.default_rng(2)
    keys, values = (rng.standard_normal((1, 2, 40, 4), np.float32) for _ in range(2))
    bank = mx.Bank(heads=2, key_dim=4, value_dim=4, write=mx.MergeAdjacent(6))
    bank.write(keys, values)
    queries = rng.standard_normal((1, 4, 3, 4), np.float32)
    for k in (None, 6):
        out, lse = bank.attend(queries, k, bias="log_weight")
        for head in range(4):
            held = state_of(bank)[0][head // 2].values()
            k_, v_, counts = (np.array([x[i] for x in held], np.float64) for i in range(3))
            weights = counts * np.exp(queries[0, head] @ k_.T / 2)
            np.testing.assert_allclose(lse[0, head], np.log(weights.sum(1)), rtol=1e-5)
            np.testing.assert_allclose(out[0, head], weights @ v_ / weights.sum(1)[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mx.MergeAdjacent(0), "n="),
        (lambda: mx.MergeAdjacent(2.5), "n="),
        (lambda: mx.MergeAdjacent(4, segment=3), "segment=3"),
        (lambda: mx.MergeAdjacent(4, segment=-1), "segment"),
        (lambda: mx.MergeAdjacent(2, similarity="l2"), "similarity"),
        (lambda: mx.MergeAdjacent(2, merge="sum"), "merge"),
        (lambda: mx.MergeAdjacent(2, beyond="drop"), "beyond"),
        (lambda: mx.Bank(key_dim=4, write="merge_adjacent"), "needs a number"),
        (lambda: mx.Bank(key_dim=4, write=mx.MergeAdjacent(2, beyond="merge")), "needs a capacity"),
        (lambda: mx.Bank(key_dim=4, write=mx.MergeAdjacent(2), key_codec="bf16"), "MergeAdjacent.*float32"),
        (lambda: mx.Bank(key_dim=4, write=mx.MergeAdjacent(2), nonfinite="keep"), "raise.*skip"),
        (lambda: mx.Bank(key_dim=4, write=mx.MergeAdjacent(2), evict="error", capacity=4), "OldestAge"),
        (lambda: mx.Bank(key_dim=4, write=mx.MergeAdjacent(2), columns={"log_weight": "float32"}), "log_weight"),
        (lambda: mx.Bank(key_dim=4, write=mx.MergeAdjacent(2)).write(np.full((1, 4), np.nan, np.float32)), "keys"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, says):
    with pytest.raises(mx.Error, match=says):
        make()
