"""The way back through what was attended to, beside plain numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

import mnemex as mx

HEADS, GROUP, TOKENS, DIM, VALUE_DIM = 2, 2, 5, 24, 17


def gauss(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def attended(bank, queries, k, *, scale, softcap):
    partial = bank.attend(queries, k, scale=scale, softcap=softcap, hits=True)
    # Something else takes part in the softmax too.
    lse = np.logaddexp(partial.lse, 0.5)
    return partial.hits, partial.out * np.exp(partial.lse - lse)[..., None], lse


def reference(queries, keys, values, ids, grad, delta, lse, *, scale, softcap):
    """Sum over the hits of one head's queries, in float64."""
    q, grad, delta, lse = (x.astype(np.float64) for x in (queries, grad, delta, lse))
    x, v = keys.astype(np.float64)[ids], values.astype(np.float64)[ids]  # [T, k, dim]
    z, slope = scale * np.einsum("td,tkd->tk", q, x), scale
    if softcap is not None:
        bent = np.tanh(z / softcap)
        z, slope = softcap * bent, scale * (1 - bent**2)
    of_z = np.exp(z - lse[:, None]) * (np.einsum("td,tkd->tk", grad, v) - delta[:, None])
    return np.einsum("tk,tkd->td", np.where(ids >= 0, of_z * slope, 0.0), x)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("k", [1, 7, 90])
def test_the_gradient_of_queries_is_that_of_the_softmax(codec, k, softcap):
    bank = mx.Bank(rows=2, heads=HEADS, key_dim=DIM, value_dim=VALUE_DIM, key_codec=codec, value_codec=codec)
    bank.write(gauss(2, HEADS, 80, DIM, seed=1), gauss(2, HEADS, 80, VALUE_DIM, seed=2))
    queries = gauss(2, HEADS * GROUP, TOKENS, DIM, seed=3)
    hits, out, lse = attended(bank, queries, k, scale=0.3, softcap=softcap)
    grad = gauss(*out.shape, seed=4)
    delta = (grad * out).sum(-1)
    found = bank.attend_backward(queries, hits, grad, delta=delta, lse=lse, scale=0.3, softcap=softcap)
    assert found.dtype == np.float32
    keys, values = bank.gather(np.tile(np.arange(80), (2, 1)))
    for row in range(2):
        for head in range(HEADS * GROUP):
            want = reference(
                queries[row, head],
                keys[row, head // GROUP],
                values[row, head // GROUP],
                hits.ids[row, head],
                *(x[row, head] for x in (grad, delta, lse)),
                scale=0.3,
                softcap=softcap,
            )
            np.testing.assert_allclose(found[row, head], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_one_lane_takes_flat_arrays_and_one_row_any_number_of_them():
    bank = mx.Bank(key_dim=DIM, value_dim="key")
    bank.write(gauss(50, DIM, seed=1))
    queries = gauss(TOKENS, DIM, seed=2)
    hits, out, lse = attended(bank, queries, 6, scale=0.2, softcap=None)
    grad = gauss(*out.shape, seed=3)
    delta = (grad * out).sum(-1)
    found = bank.attend_backward(queries, hits, grad, delta=delta, lse=lse, scale=0.2)
    keys = bank.gather(np.arange(50))[0]
    want = reference(queries, keys, keys, hits.ids, grad, delta, lse, scale=0.2, softcap=None)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())
    many = [np.stack([x[None]] * 3) for x in (queries, grad, delta, lse)]
    hits = bank.search(many[0], 6)
    again = bank.snapshot().attend_backward(many[0], hits, many[1], delta=many[2], lse=many[3], scale=0.2)
    np.testing.assert_array_equal(again, np.stack([found[None]] * 3))


@pytest.mark.parametrize("rows", [[1, 0], [1], [0, 0, 1]])
def test_hits_know_the_rows_that_they_are_of(rows):
    bank = mx.Bank(rows=2, heads=HEADS, key_dim=DIM, value_dim=VALUE_DIM)
    bank.write(gauss(2, HEADS, 40, DIM, seed=1), gauss(2, HEADS, 40, VALUE_DIM, seed=2))
    queries = gauss(len(rows), HEADS, TOKENS, DIM, seed=3)
    partial = bank.attend(queries, 5, rows=rows, hits=True)
    grad = gauss(*partial.out.shape, seed=4)
    delta = (grad * partial.out).sum(-1)
    found = bank.attend_backward(queries, partial.hits, grad, delta=delta, lse=partial.lse)
    for at, row in enumerate(rows):
        one = slice(at, at + 1)
        alone = bank.attend(queries[one], 5, rows=[row], hits=True)
        want = bank.attend_backward(queries[one], alone.hits, grad[one], delta=delta[one], lse=alone.lse)
        np.testing.assert_array_equal(found[one], want)
        keys, values = bank.gather(np.tile(np.arange(40), (2, 1)))
        plain = reference(
            queries[at, 0], keys[row, 0], values[row, 0], partial.hits.ids[at, 0],
            grad[at, 0], delta[at, 0], partial.lse[at, 0], scale=DIM**-0.5, softcap=None,
        )  # fmt: skip
        np.testing.assert_allclose(found[at, 0], plain, rtol=0, atol=1e-5 * np.abs(plain).max())


def test_an_empty_bank_has_no_gradient_and_a_bad_query_one_of_its_own():
    bank = mx.Bank(key_dim=DIM, value_dim=VALUE_DIM, nonfinite="keep")
    zeros = {"delta": np.zeros(2, np.float32), "lse": np.zeros(2, np.float32)}
    queries, grad = gauss(2, DIM, seed=1), gauss(2, VALUE_DIM, seed=2)
    for entries in (0, 9):
        bank.write(gauss(entries, DIM, seed=3), gauss(entries, VALUE_DIM, seed=4))
        queries[1, 0] = 1.0
        found = bank.attend_backward(queries, bank.search(queries, 3), grad, **zeros)
        assert np.isfinite(found).all()
        assert found.any() == (entries > 0)
        queries[1, 0] = np.nan
        hits = bank.attend(queries, 3, hits=True).hits
        found = bank.attend_backward(queries, hits, grad, **zeros)
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).all()


def test_what_weighs_nothing_gives_nothing():
    bank = mx.Bank(key_dim=4, value_dim=2, nonfinite="keep")
    keys, values = np.eye(4, dtype=np.float32), np.ones((4, 2), np.float32)
    keys[1], values[1] = [-900, 0, 0, 0], np.inf
    bank.write(keys, values)
    queries, grad = np.array([[1, 0, 0, 0]], np.float32), np.ones((1, 2), np.float32)
    partial = bank.attend(queries, 4, scale=1.0, hits=True)
    assert np.isfinite(partial.out).all()
    given = {"delta": (grad * partial.out).sum(-1), "lse": partial.lse, "scale": 1.0}
    assert np.isfinite(bank.attend_backward(queries, partial.hits, grad, **given)).all()
    given["lse"] = np.full(1, -np.inf, np.float32)
    assert not bank.attend_backward(queries, partial.hits, grad, **given).any()


def test_what_is_refused():
    bank = mx.Bank(key_dim=DIM, value_dim=VALUE_DIM)
    bank.write(gauss(9, DIM, seed=1), gauss(9, VALUE_DIM, seed=2))
    queries = gauss(3, DIM, seed=3)
    hits, out, lse = attended(bank, queries, 2, scale=0.2, softcap=None)
    good = {"grad": out, "delta": lse, "lse": lse}
    for change, error, match in (
        ({"grad": out[:2]}, mx.ShapeError, "grad has shape"),
        ({"lse": lse[:, None]}, mx.ShapeError, "lse has shape"),
        ({"delta": lse.astype(np.float64)}, mx.DtypeError, "delta is float64"),
        ({"softcap": 0.0}, mx.ArgumentError, "softcap"),
    ):
        given = {**good, **change}
        with pytest.raises(error, match=match):
            bank.attend_backward(queries, hits, given.pop("grad"), **given)
    with pytest.raises(mx.ShapeError, match="hits have ids"):
        bank.attend_backward(queries, bank.search(queries[:2], 2), **good)
    with pytest.raises(mx.DtypeError, match="hits are"):
        bank.attend_backward(queries, None, **good)
    with pytest.raises(mx.StateError, match="no values"):
        mx.Bank(key_dim=DIM).attend_backward(queries, hits, **good)
    later = bank.snapshot()
    bank.delete(hits.ids[0])
    with pytest.raises(mx.IdError, match="does not hold"):
        bank.attend_backward(queries, hits, **good)
    assert later.attend_backward(queries, hits, **good).shape == queries.shape
    with pytest.raises(mx.Unsupported, match="cos"):
        mx.Bank(key_dim=DIM, value_dim=4, metric="cos").attend_backward(queries, hits, **good)
