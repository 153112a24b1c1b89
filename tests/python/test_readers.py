"""Readers beside lists: what they take of any history, that softmax takes each entry once, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnemex as mx
from plain_bank import attention, scores
from plain_readers import once, read

ROWS, HEADS, GROUP, TOKENS, DIM, VALUE_DIM = 2, 2, 2, 3, 5, 4


def gauss(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def whole(rng, *shape):
    """Small whole numbers: ties, and sums that float32 holds."""
    return rng.integers(-3, 4, shape).astype(np.float32)


readers = st.one_of(
    st.builds(mx.TopK, st.integers(1, 9)),
    st.builds(mx.Threshold, st.sampled_from([-np.inf, -4.0, 0.0, 3.0, 9.5, np.inf]), st.integers(1, 40)),
    st.builds(mx.Window, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3)),
    st.builds(mx.Window, st.sampled_from([1, 200]), st.sampled_from([0, 70]), st.sampled_from([0, 70])),
)


@st.composite
def histories(draw):
    """Give a bank with a past, and what is left in it: for each row, id to (keys `[heads, d]`, values, label)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    capacity = draw(st.sampled_from([None, None, 7, 100]))
    metric = draw(st.sampled_from(["dot", "cos", "l2"]))
    bank = mx.Bank(rows=ROWS, heads=HEADS, key_dim=DIM, value_dim=VALUE_DIM, capacity=capacity, metric=metric)
    plain: list[dict] = [{} for _ in range(ROWS)]
    for _ in range(draw(st.integers(0, 4))):
        n = draw(st.sampled_from([0, 1, 5, 64, 130]))
        keys, values = whole(rng, ROWS, HEADS, n, DIM), whole(rng, ROWS, HEADS, n, VALUE_DIM)
        labels, mask = rng.integers(0, 4, (ROWS, n)), rng.random((ROWS, n)) < 0.9
        ids = bank.stage(keys, values, labels=labels, mask=mask)
        bank.commit()
        for row, t in np.argwhere(ids >= 0):
            plain[row][int(ids[row, t])] = (keys[row, :, t], values[row, :, t], int(labels[row, t]))
        if capacity is not None:
            plain = [{i: row[i] for i in sorted(row)[-capacity:]} for row in plain]
        for row in range(ROWS):
            gone = [i for i in plain[row] if rng.random() < draw(st.sampled_from([0, 0.2, 1]))]
            bank.delete(gone, rows=[row])
            plain[row] = {i: entry for i, entry in plain[row].items() if i not in gone}
    return bank, plain, rng


@st.composite
def conditions(draw, plain, rng):
    """Give what hides entries: the arguments, and which ids query t of a row sees."""
    kind = draw(st.sampled_from(["nothing", "ids", "bitmap", "bitmaps", "label"]))
    n, arguments = 500, {}
    allowed = [lambda i, _: True for _ in range(ROWS)]
    if kind == "ids":
        ids = rng.integers(0, 200, 60).tolist()
        arguments["where"], allowed = ids, [lambda i, _: i in ids] * ROWS
    elif kind == "bitmap":
        bits = rng.random(n) < 0.6
        arguments["where"], allowed = bits, [lambda i, _: bool(bits[i])] * ROWS
    elif kind == "bitmaps":
        bits = rng.random((ROWS, n)) < 0.6
        arguments["where"] = bits
        allowed = [lambda i, _, row=row: bool(bits[row, i]) for row in range(ROWS)]
    elif kind == "label":
        arguments["where"], allowed = ("label", "<", 2), [lambda i, label: label < 2] * ROWS
    ends = np.full((ROWS, TOKENS), 10**6)
    if draw(st.booleans()):
        ends = rng.integers(0, 2 + max(max(row, default=0) for row in plain), (ROWS, TOKENS))
        arguments["before"] = ends
    return arguments, lambda row, t, i: i < ends[row, t] and allowed[row](i, plain[row][i][2])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_readers_take_what_lists_say(data):
    bank, plain, rng = data.draw(histories())
    reader = data.draw(readers)
    arguments, sees = data.draw(conditions(plain, rng))
    queries = whole(rng, ROWS, HEADS * GROUP, TOKENS, DIM)
    found = bank.search(queries, reader, **arguments)
    part = bank.attend(queries, reader, scale=0.25, hits=True, **arguments)
    bare = bank.attend(queries, reader, scale=0.25, **arguments)
    keys, values = bank.gather(found)
    longest = int(np.max(bank.lengths, initial=0))
    places = part.hits.ids.shape[-1]
    assert places == min(reader.k, longest) * (found.ids.shape[-1] // reader.k)
    for row, head, t in np.ndindex(ROWS, HEADS * GROUP, TOKENS):
        at, lane = (row, head, t), head // GROUP
        ids = [i for i in plain[row] if sees(row, t, i)]
        of_keys = np.array([plain[row][i][0][lane] for i in ids], np.float32).reshape(-1, DIM)
        seen = dict(zip(ids, scores(of_keys, queries[at][None], bank.metric)[0], strict=True))
        want = read(seen, reader)
        assert found.ids[at].tolist() == want
        s = np.array([seen.get(i, -np.inf) for i in want], np.float32)
        np.testing.assert_array_equal(found.scores[at].view(np.int32), s.view(np.int32))
        assert found.labels[at].tolist() == [plain[row][i][2] if i >= 0 else -1 for i in want]
        assert found.distinct[at].tolist() == once(want)
        for j, i in enumerate(want):
            np.testing.assert_array_equal(keys[at][j], plain[row][i][0][lane] if i >= 0 else np.zeros(DIM))
            np.testing.assert_array_equal(values[at][j], plain[row][i][1][lane] if i >= 0 else np.zeros(VALUE_DIM))
        assert part.hits.ids[at].tolist() == want[:places]
        np.testing.assert_array_equal(part.hits.scores[at].view(np.int32), s[:places].view(np.int32))
        taken = [i for i, first in zip(want, once(want), strict=True) if first]
        logits = np.array([seen[i] for i in taken], np.float64) * 0.25
        of_values = np.array([plain[row][i][1][lane] for i in taken], np.float32).reshape(-1, VALUE_DIM)
        out, lse = attention(logits, of_values)
        for got in (part, bare):
            np.testing.assert_allclose(got.out[at], out, atol=5e-5)
            np.testing.assert_allclose(got.lse[at], lse, atol=2e-5, rtol=1e-5)
        mass = np.zeros(places)
        mass[: len(want)][once(want)[:places]] = np.exp(logits - lse) if taken else []
        np.testing.assert_allclose(part.mass[at], mass, atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 300])
def test_top_k_is_the_number_and_so_is_a_window_of_one(k):
    bank, queries = mx.Bank(key_dim=8, value_dim=8), gauss(40, 8)
    bank.write(gauss(200, 8, seed=1), gauss(200, 8, seed=2))
    for reader in (mx.TopK(k), mx.Window(k, 0, 0), mx.Threshold(-np.inf, k)):
        for reads in (bank, bank.snapshot()):
            a, b = reads.search(queries, k), reads.search(queries, reader)
            assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
            for hits in (True, False):
                a, b = reads.attend(queries, k, hits=hits), reads.attend(queries, reader, hits=hits)
                assert [x.tobytes() for x in a] == [x.tobytes() for x in b]


CODE = """
import hashlib, numpy as np, mnemex as mx
rng, sha = np.random.default_rng(3), hashlib.sha256()
for n, d, dtype in ((9000, 24, "f4"), (700, 37, "f2"), (129, 5, "f4")):
    keys = rng.standard_normal((n, d)).astype(dtype); keys[n // 2:] = keys[: n - n // 2]
    queries = rng.standard_normal((19, d)).astype("f4")
    for metric in ("dot", "cos", "l2"):
        bank = mx.Bank(key_dim=d, metric=metric, value_dim=3); bank.write(keys, np.ones((n, 3), dtype))
        bank.delete(np.arange(0, n, 7))
        for reader in (mx.Window(8, 2, 3), mx.Window(n, 1, 0), mx.Threshold(0.1, 50)):
            for some in (queries, queries[:1]):
                found = [bank.search(some, reader, threads=threads) for threads in (1, 2, 3)]
                read = [bank.attend(some, reader, threads=threads) for threads in (1, 2, 3)]
                assert len({hits.ids.tobytes() + hits.scores.tobytes() for hits in found}) == 1
                assert len({part.out.tobytes() + part.lse.tobytes() for part in read}) == 1
                sha.update(found[0].ids.tobytes() + found[0].scores.tobytes())
print(sha.hexdigest())"""


def test_ids_and_scores_are_the_same_on_every_instruction_set_and_thread_count():
    told = set()
    for isa in mx.build_info().isas:
        environment = {**os.environ, "MNEMEX_ISA": isa}
        done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
        told.add(done.stdout)
    assert len(told) == 1


def test_a_threshold_is_a_score_of_float32_and_may_be_infinite():
    bank = mx.Bank(key_dim=1, value_dim=1, nonfinite="keep")
    keys = np.array([[0.1], [3e38], [-1.0], [np.nan], [0.2]], np.float32)
    bank.write(keys, np.ones((5, 1), np.float32))
    ask = lambda score, q=1.0: bank.search(np.array([[q]], np.float32), mx.Threshold(score, 9))  # noqa: E731
    assert ask(0.1).ids[0].tolist() == [1, 4, 0] + [-1] * 6
    assert ask(np.float32(0.2)).ids[0, :3].tolist() == [1, 4, -1]
    assert ask(-np.inf).ids[0, :5].tolist() == [1, 4, 0, 2, -1]
    assert ask(np.inf).valid.sum() == 0
    assert ask(np.float32(np.inf), q=9.0).ids[0, :2].tolist() == [1, -1]
    part = bank.attend(np.ones((2, 1), np.float32), mx.Threshold(np.inf, 3), hits=True)
    assert not part.out.any()
    assert (part.lse == -np.inf).all()
    assert (part.hits.ids == -1).all()
    assert not part.mass.any()


def test_neighbours_without_a_score_are_padding_and_queries_without_one_have_none():
    bank = mx.Bank(key_dim=2, value_dim=1, nonfinite="keep")
    keys = np.array([[1, 0], [np.nan, 0], [5, 0], [0, np.inf], [0, 0]], np.float32)
    bank.write(keys, np.ones((5, 1), np.float32))
    found = bank.search(np.array([[1, 0]], np.float32), mx.Window(2, 1, 2))
    # Infinity times 0 is NaN.
    assert found.ids[0].tolist() == [2, -1, -1, 4, 0, -1, -1, 2]
    queries = np.array([[np.nan, 0], [1, 0]], np.float32)
    part = bank.attend(queries, mx.Window(2, 1, 2), hits=True)
    assert np.isnan(part.out[0]).all()
    assert (part.hits.ids[0] == -1).all()
    assert part.out[1] == pytest.approx(1.0)


def test_neighbours_are_those_of_the_row_and_head():
    bank = mx.Bank(rows=2, heads=2, key_dim=6, value_dim=6)
    bank.write(gauss(2, 2, 90, 6), gauss(2, 2, 90, 6, seed=1))
    bank.reorder([1, 0, 1])
    queries = gauss(2, 4, 3, 6, seed=2)
    found = bank.search(queries, mx.Window(4, 1, 1), rows=[2, 1])
    keys, _ = bank.gather(found)
    for row, head, t in np.ndindex(2, 4, 3):
        valid = found.valid[row, head, t]
        assert valid.any()
        want = scores(keys[row, head, t][valid], queries[row, head, t][None], "dot")[0]
        np.testing.assert_array_equal(found.scores[row, head, t][valid], want)


def test_an_attend_with_a_column_of_biases_weighs_each_entry_once():
    bank = mx.Bank(key_dim=4, value_dim=3, columns={"prior": "float32"})
    keys, values, prior = gauss(50, 4), gauss(50, 3, seed=1), gauss(50, seed=2)
    bank.write(keys, values, columns={"prior": prior})
    queries = gauss(20, 4, seed=3)
    part = bank.attend(queries, mx.Window(6, 1, 2), bias="prior", hits=True)
    for t, s in enumerate(scores(keys, queries, "dot")):
        taken = part.hits.ids[t][part.hits.distinct[t]]
        out, lse = attention(s[taken].astype(np.float64) / 2 + prior[taken], values[taken])
        np.testing.assert_allclose(part.out[t], out, atol=1e-5)
        assert abs(part.lse[t] - lse) < 1e-5


def test_a_touch_counts_an_entry_once_per_query_and_adds_its_weights_up():
    bank = mx.Bank(key_dim=2, value_dim=2, heads=2)
    bank.write(gauss(1, 2, 12, 2), gauss(1, 2, 12, 2, seed=1))
    queries = gauss(1, 4, 3, 2, seed=2)
    part = bank.attend(queries, mx.Window(5, 1, 1), hits=True)
    assert part.hits.distinct.sum() < part.hits.valid.sum()
    bank.touch(part.hits, part.mass)
    bank.commit()
    stats = bank.stats()
    assert stats.touches == part.hits.distinct.sum()
    assert stats.mass == pytest.approx(12)  # 4 heads of 3 queries
    found = bank.search(queries, mx.Window(5, 1, 1))
    bank.touch(found, found.valid.astype(np.float32))
    bank.commit()
    assert bank.stats().touches == 2 * stats.touches
    assert bank.stats().mass == pytest.approx(12 + found.valid.sum())


def test_gradients_count_an_entry_once():
    bank = mx.Bank(key_dim=6, value_dim=5)
    bank.write(gauss(40, 6), gauss(40, 5, seed=1))
    queries, grad = gauss(9, 6, seed=2), gauss(9, 5, seed=3)
    reader = mx.Window(6, 2, 1)
    part = bank.attend(queries, reader, hits=True)
    given = {"delta": (grad * part.out).sum(-1), "lse": part.lse}
    of_queries = bank.attend_backward(queries, part.hits, grad, **given)
    np.testing.assert_array_equal(
        bank.attend_backward(queries, bank.search(queries, reader), grad, **given), of_queries
    )
    ids = np.where(part.hits.distinct, part.hits.ids, -1)
    alone = mx.Hits(part.hits.scores, ids, part.hits.rows)
    np.testing.assert_array_equal(bank.attend_backward(queries, alone, grad, **given), of_queries)
    keys, values = (x.astype(np.float64) for x in bank.gather(np.arange(40)))
    for t in range(9):
        taken = ids[t][ids[t] >= 0]
        weights = np.exp(keys[taken] @ queries[t].astype(np.float64) * 6**-0.5 - part.lse[t])
        want = (weights * (values[taken] @ grad[t] - given["delta"][t])) @ keys[taken] * 6**-0.5
        np.testing.assert_allclose(of_queries[t], want, atol=1e-5)


def test_a_window_of_everything_is_full_attention():
    bank = mx.Bank(key_dim=6, value_dim=5)
    bank.write(gauss(300, 6), gauss(300, 5, seed=1))
    queries = gauss(20, 6, seed=2)
    want = bank.attend(queries, None)
    for reader in (mx.Window(10**9), mx.Window(300, 3, 3), mx.Window(150, 299, 299)):
        got = bank.attend(queries, reader)
        np.testing.assert_allclose(got.out, want.out, atol=1e-5)
        np.testing.assert_allclose(got.lse, want.lse, atol=1e-5)


BIG = 2**62


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: mx.TopK(0), mx.ArgumentError, "k=0"),
        (lambda: mx.TopK(True), mx.ArgumentError, "k=True"),
        (lambda: mx.TopK(2**63), mx.ArgumentError, "k="),
        (lambda: mx.TopK(1.0), mx.DtypeError, "k=1.0"),
        (lambda: mx.Threshold(float("nan"), 3), mx.ArgumentError, "score=nan"),
        (lambda: mx.Threshold(1e39, 3), mx.ArgumentError, "score=1e"),
        (lambda: mx.Threshold(10**400, 3), mx.ArgumentError, "score=1"),
        (lambda: mx.Threshold("high", 3), mx.DtypeError, "score='high'"),
        (lambda: mx.Threshold(None, 3), mx.DtypeError, "score=None"),
        (lambda: mx.Threshold(0.5, -2), mx.ArgumentError, "k=-2"),
        (lambda: mx.Window(-1), mx.ArgumentError, "k=-1"),
        (lambda: mx.Window(3, before=-1), mx.ArgumentError, "before=-1"),
        (lambda: mx.Window(3, after=-1), mx.ArgumentError, "after=-1"),
        (lambda: mx.Window(3, after=0.5), mx.DtypeError, "after=0.5"),
        (lambda: mx.Window(3, before="1"), mx.DtypeError, "before='1'"),
    ],
)
def test_readers_that_cannot_be(make, error, match):
    with pytest.raises(error, match=match) as raised:
        make()
    assert isinstance(raised.value, mx.Error)


def test_readers_are_plain_frozen_values():
    assert mx.TopK(np.int64(3)) == mx.TopK(3)
    assert mx.Window(np.int32(2)) == mx.Window(k=2, before=0, after=1)
    assert hash(mx.Threshold(np.float32(0.5), 2)) == hash(mx.Threshold(0.5, 2))
    assert repr(mx.Window(np.int64(2))) == "Window(k=2, before=0, after=1)"
    with pytest.raises(AttributeError):
        mx.TopK(3).k = 4


def test_what_is_no_reader_and_answers_that_are_too_large():
    bank, queries = mx.Bank(key_dim=2, value_dim=2), gauss(3, 2)
    bank.write(gauss(9, 2), gauss(9, 2))
    for call in (bank.search, bank.attend, bank.snapshot().search):
        for wrong in ("topk", mx.Window, mx.Flat(), [3], 0, 2.5):
            with pytest.raises(mx.Error, match=r"k=.*Window"):
                call(queries, wrong)
        with pytest.raises(mx.ArgumentError, match=r"k=.*2.{1,2}31"):
            call(queries, mx.Window(3, BIG, BIG))
    with pytest.raises(mx.DtypeError, match="k=None"):
        bank.search(queries, None)
    for reader in (mx.Window(2**29, 1, 1), mx.Window(2**31), mx.Threshold(0.0, 2**31), mx.Window(1, after=2**30)):
        with pytest.raises(mx.ArgumentError, match=r"k=.*2.{1,2}31"):
            bank.search(queries, reader)
    assert bank.attend(queries, mx.Window(BIG, 1, 1), hits=True).hits.ids.shape == (3, 27)
    empty = mx.Bank(key_dim=2, value_dim=2)
    assert (empty.search(queries, mx.Window(2)).ids == -1).all()
    assert empty.search(queries, mx.Window(2, 1, 1)).ids.shape == (3, 6)
    part = empty.attend(queries, mx.Window(2, BIG, BIG), hits=True)
    assert part.hits.ids.shape == (3, 0)
    assert (part.lse == -np.inf).all()
