"""Product keys against a scan of every pair of half keys, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnemex as mx


def sums(keys: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Add up the documented float64 products of each key with a query."""
    products = keys.astype(np.float64) * query.astype(np.float64)
    a = np.zeros((len(keys), 8))
    for j in range(keys.shape[1]):
        a[:, j % 8] += products[:, j]
    return ((a[:, 0] + a[:, 4]) + (a[:, 2] + a[:, 6])) + ((a[:, 1] + a[:, 5]) + (a[:, 3] + a[:, 7]))


def scan(rows: np.ndarray, columns: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k best of all pairs: scores and ids."""
    first = rows.shape[1]
    scores = (sums(rows, query[:first])[:, None] + sums(columns, query[first:])).astype(np.float32).ravel()
    scores += np.float32(0)  # no -0
    order = np.lexsort((np.arange(scores.size), -scores.astype(np.float64)))[:k]
    return scores[order], order


KINDS = {
    "gauss": lambda rng, shape: rng.standard_normal(shape),
    "equal": lambda rng, shape: np.full(shape, 0.3),
    "few values": lambda rng, shape: rng.integers(-2, 3, shape),
    "repeated": lambda rng, shape: rng.standard_normal((3, shape[-1]))[rng.integers(3, size=shape[:-1])],
    "far apart": lambda rng, shape: rng.standard_normal(shape) * 10.0 ** rng.integers(-12, 6, (*shape[:-1], 1)),
    "zeros": lambda rng, shape: np.zeros(shape) * rng.choice([1.0, -1.0], shape),
}


@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.tuples(*[st.sampled_from(sorted(KINDS))] * 3),
    heads=st.integers(1, 3),
    n=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    dims=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    tokens=st.integers(0, 20),
    k=st.integers(1, 70),
)
def test_the_best_are_those_of_a_scan_of_every_pair(seed, kinds, heads, n, dims, tokens, k):
    rng = np.random.default_rng(seed)
    halves = [
        KINDS[kind](rng, (heads, n, dim)).astype(np.float32) for kind, n, dim in zip(kinds, n, dims, strict=False)
    ]
    queries = KINDS[kinds[2]](rng, (tokens, heads, sum(dims))).astype(np.float32)
    keys = mx.ProductKeys(halves)
    found = keys.lookup(queries, k)
    assert found.scores.shape == found.ids.shape == (tokens, heads, k)
    for token in range(tokens):
        for head in range(heads):
            scores, ids = scan(halves[0][head], halves[1][head], queries[token, head], k)
            m = len(ids)
            assert (found.ids[token, head, :m] == ids).all()
            assert (found.scores[token, head, :m].view(np.int32) == scores.view(np.int32)).all()
            assert (found.ids[token, head, m:] == -1).all()
            assert (found.scores[token, head, m:] == -np.inf).all()
            assert found.valid[token, head].sum() == m


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("n_values", [400, 37])
def test_read_sums_the_values_of_all_heads(rng, dtype, n_values):
    sub_keys = rng.standard_normal((3, 2, 20, 7), dtype=np.float32)
    values = rng.standard_normal((n_values, 21)).astype(dtype)
    queries = rng.standard_normal((11, 3, 14), dtype=np.float32)
    keys = mx.ProductKeys(sub_keys, values)
    scores, ids = keys.lookup(queries, 8)
    chosen = values.astype(np.float64)[ids % n_values]
    for given_, weights in ({}, softmax(scores.astype(np.float64))), ({"softmax": False, "scale": 0.5}, 0.5 * scores):
        want = np.einsum("thk,thkd->td", weights, chosen)
        np.testing.assert_allclose(keys.read(queries, 8, **given_), want, rtol=1e-4, atol=1e-4)


def test_more_slots_than_there_are_weigh_nothing(rng):
    keys = mx.ProductKeys(
        rng.standard_normal((1, 2, 2, 3), dtype=np.float32), rng.standard_normal((4, 5), dtype=np.float32)
    )
    queries = rng.standard_normal((6, 6), dtype=np.float32)
    np.testing.assert_allclose(keys.read(queries, 100), keys.read(queries, 4), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(keys.read(queries, 100, softmax=False), keys.read(queries, 4, softmax=False))


def test_one_head_takes_and_gives_two_axes(rng):
    sub_keys = rng.standard_normal((2, 9, 4), dtype=np.float32)
    keys = mx.ProductKeys(sub_keys)
    queries = rng.standard_normal((5, 8), dtype=np.float32)
    scores, ids = keys.lookup(queries, 3)
    assert scores.shape == ids.shape == (5, 3)
    also = mx.ProductKeys((sub_keys[0], sub_keys[1])).lookup(queries[:, None], 3)
    assert (also.ids[:, 0] == ids).all()


def test_sub_keys_are_read_where_they_lie(rng):
    halves = [rng.standard_normal((1, 9, 4), dtype=np.float32) for _ in range(2)]
    keys, queries = mx.ProductKeys(halves), rng.standard_normal((5, 8), dtype=np.float32)
    before = keys.lookup(queries, 3).scores
    halves[0] *= 2
    halves[1] *= 2
    np.testing.assert_array_equal(keys.lookup(queries, 3).scores, 2 * before)


def test_threads_change_no_bit(rng):
    keys = mx.ProductKeys(
        rng.standard_normal((2, 2, 300, 16), dtype=np.float32), rng.standard_normal((90000, 24), dtype=np.float32)
    )
    queries = rng.standard_normal((400, 2, 32), dtype=np.float32)
    found = [(keys.lookup(queries, 32, threads=n), keys.read(queries, 32, threads=n)) for n in (1, 2, 3)]
    for slots, out in found[1:]:
        np.testing.assert_array_equal(slots.ids, found[0][0].ids)
        np.testing.assert_array_equal(slots.scores.view(np.int32), found[0][0].scores.view(np.int32))
        np.testing.assert_array_equal(out.view(np.int32), found[0][1].view(np.int32))


DIGEST = """
import hashlib, numpy as np, mnemex as mx
rng = np.random.default_rng(3)
keys = mx.ProductKeys(rng.standard_normal((2, 2, 200, 13), dtype=np.float32))
found = keys.lookup(rng.standard_normal((50, 2, 26), dtype=np.float32), 32)
print(hashlib.sha256(found.scores.tobytes() + found.ids.tobytes()).hexdigest())
"""


def test_instruction_sets_change_no_bit():
    def digest(isa: str) -> str:
        env = {**os.environ, "MNEMEX_ISA": isa}
        return subprocess.run(
            [sys.executable, "-c", DIGEST], env=env, check=True, capture_output=True, text=True
        ).stdout

    assert len({digest(isa) for isa in mx.build_info().isas}) == 1


def test_queries_that_are_not_finite(rng):
    sub_keys = rng.standard_normal((2, 2, 30, 4), dtype=np.float32)
    values = rng.standard_normal((900, 3), dtype=np.float32)
    queries = rng.standard_normal((6, 2, 8), dtype=np.float32)
    queries[2, 1, 3] = np.nan
    with pytest.raises(mx.NonFinite, match="queries"):
        mx.ProductKeys(sub_keys).lookup(queries, 4)
    found = mx.ProductKeys(sub_keys, nonfinite="keep").lookup(queries, 4)
    assert not found.valid[2, 1].any()
    assert found.valid.sum() == 6 * 2 * 4 - 4
    out = mx.ProductKeys(sub_keys, values, nonfinite="keep").read(queries, 4)
    assert np.isfinite(out).all()
    sub_keys[0, 0, 7, 1] = np.inf
    with pytest.raises(mx.NonFinite, match="sub_keys"):
        mx.ProductKeys(sub_keys)
    kept = mx.ProductKeys(sub_keys, nonfinite="keep").lookup(queries, 900)
    assert 7 not in kept.ids[:, 0] // 30
    assert (kept.ids[0, 1] >= 0).all()


@pytest.mark.parametrize(("dtype", "name"), [("<f4", "float32"), ("<f2", "float16")])
def test_values_are_mapped_from_a_file(rng, tmp_path, dtype, name):
    sub_keys = rng.standard_normal((2, 2, 8, 3), dtype=np.float32)
    values = rng.standard_normal((64, 5)).astype(dtype)
    queries = rng.standard_normal((4, 2, 6), dtype=np.float32)
    want = mx.ProductKeys(sub_keys, values).read(queries, 6)
    values.tofile(tmp_path / "values.bin")
    np.save(tmp_path / "values.npy", values)
    raw = mx.ProductKeys(sub_keys, tmp_path / "values.bin", value_dim=5, value_dtype=name)
    np.testing.assert_array_equal(raw.read(queries, 6), want)
    np.testing.assert_array_equal(mx.ProductKeys(sub_keys, str(tmp_path / "values.npy")).read(queries, 6), want)


def test_bfloat16_files_are_read(rng, tmp_path):
    sub_keys = rng.standard_normal((2, 8, 3), dtype=np.float32)
    values = rng.standard_normal((64, 5), dtype=np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    bits.tofile(tmp_path / "values")
    queries = rng.standard_normal((4, 6), dtype=np.float32)
    got = mx.ProductKeys(sub_keys, tmp_path / "values", value_dim=5, value_dtype="bfloat16").read(queries, 6)
    cut = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(got, mx.ProductKeys(sub_keys, cut).read(queries, 6))


def test_files_that_do_not_fit_are_refused(rng, tmp_path):
    sub_keys = rng.standard_normal((2, 8, 3), dtype=np.float32)
    path = tmp_path / "values.bin"
    np.zeros(64 * 5 + 1, np.float32).tofile(path)
    with pytest.raises(mx.FormatError, match=r"has 1,284 bytes; 64 values of 5 float32 take 1,280"):
        mx.ProductKeys(sub_keys, path, value_dim=5)
    with pytest.raises(mx.ArgumentError, match="give value_dim="):
        mx.ProductKeys(sub_keys, path)
    with pytest.raises(mx.ArgumentError, match="value_dtype='float64'"):
        mx.ProductKeys(sub_keys, path, value_dim=5, value_dtype="float64")
    with pytest.raises(FileNotFoundError, match="no such file"):
        mx.ProductKeys(sub_keys, tmp_path / "other", value_dim=5)
    (tmp_path / "values.npy").write_bytes(b"not an array")
    with pytest.raises(mx.FormatError, match=r"cannot be mapped as a \.npy"):
        mx.ProductKeys(sub_keys, tmp_path / "values.npy")
    np.zeros((1000, 5), np.float32).tofile(path)
    with pytest.raises(mx.ShapeError, match="1000 values for 64 slots"):
        mx.ProductKeys(sub_keys, path, value_dim=5, n_values=1000)


def test_a_file_larger_than_memory_is_mapped(rng, tmp_path):
    sub_keys = rng.standard_normal((2, 512, 3), dtype=np.float32)
    with (tmp_path / "values").open("wb") as file:
        file.truncate(2**18 * 2**19)  # 128 GiB that take no room: all zeros but the last row
        file.seek(-4, 2)
        file.write(np.float32(1).tobytes())
    keys = mx.ProductKeys(sub_keys, tmp_path / "values", value_dim=2**17)
    out = keys.read(rng.standard_normal((2, 6), dtype=np.float32), 3)
    assert out.shape == (2, 2**17)
    assert (out[:, :-1] == 0).all()


def test_a_npy_file_column_by_column_is_refused(rng, tmp_path):
    sub_keys = rng.standard_normal((2, 8, 3), dtype=np.float32)
    np.save(tmp_path / "values.npy", np.asfortranarray(rng.standard_normal((64, 5), dtype=np.float32)))
    with pytest.raises(mx.FormatError, match="row by row"):
        mx.ProductKeys(sub_keys, tmp_path / "values.npy")
    np.save(tmp_path / "flat.npy", np.zeros(64, np.float32))
    with pytest.raises(mx.ShapeError, match="values have shape"):
        mx.ProductKeys(sub_keys, tmp_path / "flat.npy")


@pytest.mark.parametrize("k", [470, 490, 900, 4000, 10**5])
def test_many_slots_of_many_keys(rng, k):
    halves = [rng.standard_normal((1, n, 3), dtype=np.float32) for n in (700, 90)]
    queries = rng.standard_normal((3, 6), dtype=np.float32)
    found = mx.ProductKeys(halves).lookup(queries, k)
    for query, got_scores, got in zip(queries, found.scores, found.ids, strict=True):
        scores, ids = scan(halves[0][0], halves[1][0], query, k)
        assert (got[: len(ids)] == ids).all()
        assert (got_scores[: len(ids)].view(np.int32) == scores.view(np.int32)).all()


def test_no_weight_and_no_warning_where_there_is_no_slot(rng):
    keys = mx.ProductKeys(rng.standard_normal((2, 2, 3), dtype=np.float32), np.ones((4, 5), np.float32))
    with np.errstate(all="raise"):
        out = keys.read(rng.standard_normal((3, 6), dtype=np.float32), 9, softmax=False, scale=0)
    np.testing.assert_array_equal(out, np.zeros((3, 5), np.float32))


def test_wrong_arguments_are_refused(rng):
    sub_keys = rng.standard_normal((2, 2, 8, 3), dtype=np.float32)
    keys, queries = mx.ProductKeys(sub_keys), rng.standard_normal((4, 2, 6), dtype=np.float32)
    for wrong in (
        sub_keys[0, 0],
        sub_keys[:, :1],
        [sub_keys[:, 0]],
        [sub_keys[:, 0], sub_keys[:1, 1]],
        sub_keys[:, :, :0],
    ):
        with pytest.raises(mx.ShapeError, match="sub_keys"):
            mx.ProductKeys(wrong)
    with pytest.raises(mx.DtypeError, match="sub_keys are float64"):
        mx.ProductKeys(sub_keys.astype(np.float64))
    for wrong in (queries[0], queries[:, :1], queries[..., :5], np.float32(1)):
        with pytest.raises(mx.ShapeError, match="queries"):
            keys.lookup(wrong, 3)
    for k in (0, -1, 10**12, 2**70):
        with pytest.raises(mx.ArgumentError, match="k="):
            keys.lookup(queries, k)
    with pytest.raises(mx.ArgumentError, match="k="):
        keys.lookup(queries[:0], 2**62)
    with pytest.raises(mx.DtypeError, match=r"k=2\.5"):
        keys.lookup(queries, 2.5)
    with pytest.raises(mx.StateError, match="no values"):
        keys.read(queries, 3)
    for values in (np.zeros((65, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(64, np.float32)):
        with pytest.raises(mx.ShapeError, match="values"):
            mx.ProductKeys(sub_keys, values)
    with pytest.raises(mx.ArgumentError, match="for files"):
        mx.ProductKeys(sub_keys, np.zeros((64, 2), np.float32), value_dim=2)
    with pytest.raises(mx.ArgumentError, match="nonfinite"):
        mx.ProductKeys(sub_keys, nonfinite="skip")
    assert "2 x 8 x 8 slots" in repr(keys)
