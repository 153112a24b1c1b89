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


def test_an_empty_bank_has_no_gradient_and_a_bad_query_one_of_its_own():
    bank = mx.Bank(key_dim=DIM, value_dim=VALUE_DIM)
    zeros = {"delta": np.zeros(2, np.float32), "lse": np.zeros(2, np.float32)}
    queries, grad = gauss(2, DIM, seed=1), gauss(2, VALUE_DIM, seed=2)
    assert not bank.attend_backward(queries, bank.search(queries, 3), grad, **zeros).any()
    bank.write(gauss(9, DIM, seed=3), gauss(9, VALUE_DIM, seed=4))
    hits = bank.search(queries, 3)
    queries[1, 0] = np.nan
    found = bank.attend_backward(queries, hits, grad, **zeros)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


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
    later = bank.snapshot()
    bank.delete(hits.ids[0])
    with pytest.raises(mx.IdError, match="does not hold"):
        bank.attend_backward(queries, hits, **good)
    assert later.attend_backward(queries, hits, **good).shape == queries.shape
    with pytest.raises(mx.Unsupported, match="cos"):
        mx.Bank(key_dim=DIM, value_dim=4, metric="cos").attend_backward(queries, hits, **good)
