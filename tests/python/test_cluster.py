"""Clusters beside a plain model: every lane, bit for bit, after every step; and what is read, on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnemex as mx
from plain_cluster import ClusterLane
from policy_streams import EVICTS, STEP, play, state_of

POLICIES = st.builds(
    mx.Cluster,
    delta=st.sampled_from([0.0, 0.3, 0.6, 1.0, 1e6]),
    reservoir=st.integers(1, 4),
    seed=st.integers(0, 5),
)


@settings(max_examples=250, deadline=None)
@given(
    policy=POLICIES,
    evict=EVICTS,
    metric=st.sampled_from(["dot", "cos", "l2"]),
    capacity=st.one_of(st.integers(5, 30), st.lists(st.integers(5, 30), min_size=2, max_size=2)),
    steps=st.lists(STEP, min_size=4, max_size=25),
    seed=st.integers(0, 99),
)
def test_a_bank_is_what_the_definition_says(policy, evict, metric, capacity, steps, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    play(policy, lambda head: ClusterLane(policy, head), evict, metric, capacity, steps, seed, folder)


def blobs(rng, centres: int, n: int, dim: int) -> np.ndarray:
    """Draw keys around a few centres that are far apart."""
    middle = 4 * rng.standard_normal((centres, dim))
    return (middle[rng.integers(0, centres, n)] + 0.1 * rng.standard_normal((n, dim))).astype(np.float32)


def test_what_is_kept_does_not_depend_on_the_commits():
    keys = blobs(np.random.default_rng(0), 5, 400, 6)
    states = []
    for sizes in ([400], [1] * 400, [7, 193, 200]):
        bank, at = mx.Bank(key_dim=6, value_dim="key", write=mx.Cluster(delta=1.0, reservoir=3), seed=9), 0
        for size in sizes:
            bank.write(keys[at : at + size])
            at += size
        states.append({id_: (key.tobytes(), int(n)) for id_, (key, _, n, _) in state_of(bank)[0][0].items()})
    assert states[0] == states[1] == states[2]
    assert len(states[0]) == 5 * (1 + 3)
    assert sum(n for _, n in states[0].values()) == 400


def test_representatives_are_far_apart_and_members_are_near():
    keys = np.random.default_rng(3).standard_normal((300, 3), np.float32)
    bank = mx.Bank(key_dim=3, value_dim="key", write=mx.Cluster(delta=0.7, reservoir=300))
    bank.write(keys)
    held = state_of(bank)[0][0]
    assert len(held) == 300, "samples of every size hold everything"
    centres = np.array([key for key, _, n, _ in held.values() if n > 0], np.float64)
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1) + 9 * np.eye(len(centres))
    assert apart.min() > 0.7
    assert (np.linalg.norm(keys[:, None] - centres, axis=-1).min(1) <= 0.7).all()
    out, lse = bank.attend(keys[:4], None, bias="log_weight")
    plain = mx.Bank(key_dim=3, value_dim="key")
    plain.write(keys)
    np.testing.assert_allclose(lse, plain.attend(keys[:4], None).lse, rtol=1e-5)
    np.testing.assert_allclose(out, plain.attend(keys[:4], None).out, rtol=1e-4, atol=1e-5)


def test_sums_are_right_on_average_over_the_draws():
    rng = np.random.default_rng(4)
    keys = blobs(rng, 3, 240, 4)
    values = rng.standard_normal((240, 2), np.float32)
    queries = rng.standard_normal((5, 4), np.float32)
    weights = np.exp(queries.astype(np.float64) @ keys.T / 2)
    sums, above = [], []
    for seed in range(400):
        bank = mx.Bank(key_dim=4, value_dim=2, write=mx.Cluster(delta=1.5, reservoir=4), seed=seed)
        bank.write(keys, values)
        assert len(bank) == 3 * 5
        out, lse = bank.attend(queries, None, bias="log_weight")
        sums.append(np.exp(lse.astype(np.float64)))
        above.append(out * np.exp(lse.astype(np.float64))[:, None])
    for drawn, truth in ((np.array(sums), weights.sum(1)), (np.array(above), weights @ values)):
        error = drawn.std(0, ddof=1) / np.sqrt(len(drawn))
        # 15 numbers: beyond 4.5 standard errors with a chance of 1e-4.
        assert (np.abs(drawn.mean(0) - truth) <= 4.5 * error).all()


@pytest.mark.parametrize("k", [None, 9, 40])
def test_attend_weighs_as_the_column_says(k):
    rng = np.random.default_rng(5)
    keys = np.stack([blobs(rng, 6, 200, 4), blobs(rng, 3, 200, 4)])[None]
    bank = mx.Bank(heads=2, key_dim=4, value_dim="key", write=mx.Cluster(delta=1.0, reservoir=5))
    bank.write(keys)
    queries = rng.standard_normal((1, 4, 7, 4), np.float32)
    part = bank.attend(queries, k, bias="log_weight", hits=k is not None)
    for head in range(4):
        held = list(state_of(bank)[0][head // 2].values())
        k_, added = np.array([x[0] for x in held], np.float64), np.array([x[3] for x in held], np.float64)
        scores = queries[0, head] @ k_.T
        logits = scores / 2 + added
        if k is not None and k < len(held):
            logits[scores < np.sort(scores, 1)[:, -k][:, None]] = -np.inf
        weights = np.exp(logits)
        np.testing.assert_allclose(part.lse[0, head], np.log(weights.sum(1)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(part.out[0, head], weights @ k_ / weights.sum(1)[:, None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codec", ["f16", "bf16"])
def test_keys_are_clustered_as_they_are_stored(codec, tmp_path):
    keys = blobs(np.random.default_rng(6), 4, 200, 5)
    bank = mx.Bank(key_dim=5, value_dim="key", key_codec=codec, write=mx.Cluster(delta=0.3, reservoir=2))
    receipts = [bank.write(keys[at : at + 40]) for at in range(0, 200, 40)]
    rounded = mx.Bank(key_dim=5, value_dim="key", key_codec=codec)
    rounded.write(keys)
    plain = mx.Bank(key_dim=5, value_dim="key", write=mx.Cluster(delta=0.3, reservoir=2))
    again = plain.write(rounded.gather(np.arange(200))[0].astype(np.float32))
    bank.save(tmp_path / "bank")
    for each in (bank, mx.open(tmp_path / "bank")):
        assert {i: int(x[2]) for i, x in state_of(each)[0][0].items()} == {
            i: int(x[2]) for i, x in state_of(plain)[0][0].items()
        }
    assert 4 <= len(bank) < 200
    assert all(receipt.landed[0].max() >= 0 for receipt in receipts)
    assert again.evicted == 0


def test_a_cluster_goes_on_while_its_representative_is_there():
    bank = mx.Bank(key_dim=2, write=mx.Cluster(delta=0.5, reservoir=2))
    bank.write(np.zeros((3, 2), np.float32))
    bank.delete([0])
    receipt = bank.write(np.zeros((2, 2), np.float32))
    assert receipt.landed[0].tolist() == [3, 4], "what is left of the first cluster takes nobody in"
    columns = bank.gather([1, 2, 3, 4], columns=["count", "log_weight"])[2]
    assert columns["count"].tolist() == [0, 0, 2, 0]
    assert (columns["log_weight"] == 0).all()


def test_what_a_token_replaces_represents_nobody():
    bank = mx.Bank(key_dim=2, write=mx.Cluster(delta=0.5))
    bank.write(np.zeros((1, 2), np.float32), labels=[7])
    assert bank.write(np.zeros((1, 2), np.float32), labels=[7], on_duplicate="replace").landed[0].tolist() == [1]
    assert bank.gather([1], columns=["count"])[2]["count"].tolist() == [1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mx.Cluster(delta=-0.1), "delta=-0.1"),
        (lambda: mx.Cluster(delta=float("nan")), "delta"),
        (lambda: mx.Cluster(delta="far"), "delta"),
        (lambda: mx.Cluster(delta=1, reservoir=0), "reservoir"),
        (lambda: mx.Cluster(delta=1, seed=-1), "seed"),
        (lambda: mx.Bank(key_dim=4, write="cluster"), "needs a distance"),
        (lambda: mx.Bank(key_dim=4, write=mx.Cluster(1.0), nonfinite="keep"), "distance.*raise.*skip"),
        (
            lambda: mx.Bank(key_dim=4, write=mx.Cluster(1.0)).write(np.ones((1, 4), np.float32), nonfinite="keep"),
            "skip",
        ),
        (lambda: mx.Bank(key_dim=4, write=mx.Cluster(1.0), columns={"count": "int64"}), "count"),
        (lambda: mx.Bank(key_dim=4).attend(np.ones((1, 4), np.float32), 1, bias="log_weight"), "value|log_weight"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, says):
    with pytest.raises(mx.Error, match=says):
        make()
