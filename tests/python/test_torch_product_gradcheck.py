"""Gradients of product-key memory: by differences in float64, and in float32 against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

import mnemex as mx  # noqa: E402
from mnemex.torch import product_ops, product_plain  # noqa: E402
from product_parts import plain_bag, plain_bag_backward, plain_lookup, plain_lookup_backward, sub_keys  # noqa: E402

SIZES = {
    "even": (3, 2, 5, 6, 8, 4),
    "odd": (4, 3, 7, 4, 5, 6),
    "k above n": (2, 1, 3, 3, 4, 7),
    "all": (2, 2, 2, 2, 3, 9),
}
"""Tokens, heads, rows, columns, key_dim, k."""


def close(got, want, dtype):
    """Compare sums of a few dozen products: 64 roundings of the largest number."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * np.finfo(dtype).eps * (1 + np.abs(want).max(initial=0)))


def bagged(dtype, n_tokens=5, m=6, n=9, dv=3):
    rng = np.random.default_rng(3)
    ids = rng.integers(-1, n - 2, (n_tokens, m))
    ids[1] = -1
    values, weights, grad = (rng.standard_normal(s).astype(dtype) for s in ((n, dv), (n_tokens, m), (n_tokens, dv)))
    return torch.from_numpy(values), torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(grad)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_scores_and_their_gradients_are_those_of_the_definition(size, dtype):
    rows, columns, queries = (x.requires_grad_() for x in sub_keys(*SIZES[size][:5], dtype=dtype))
    k = SIZES[size][5]
    scores, ids = product_ops.lookup(rows, columns, queries, k)
    want, where = plain_lookup(rows.detach(), columns.detach(), queries.detach(), k)
    assert (ids.numpy() == where).all()
    there = ids >= 0
    exact = dtype is np.float32  # rounded once; float64 is not rounded, and depends on the order of sums
    assert (scores.detach().numpy() == want).all() or not exact
    close(scores[there].detach(), want[there], dtype)
    assert there.sum(-1).unique().tolist() == [min(k, rows.shape[1] * columns.shape[1])]
    grad = torch.where(there, torch.randn(scores.shape, dtype=scores.dtype), 0)
    of_queries, of_rows, of_columns = plain_lookup_backward(
        rows.detach(), columns.detach(), queries.detach(), where, grad
    )
    got = torch.autograd.grad((torch.where(there, scores, 0) * grad).sum(), (queries, rows, columns))
    for one, other in zip(got, (of_queries, of_rows, of_columns), strict=True):
        close(one, other, dtype)


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_scores_by_differences(size):
    given = [x.requires_grad_() for x in sub_keys(*SIZES[size][:5], dtype=np.float64)]

    def scores(rows, columns, queries):
        found = product_ops.lookup(rows, columns, queries, SIZES[size][5])
        return torch.where(found.ids >= 0, found.scores, 0)

    assert torch.autograd.gradcheck(scores, given)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_and_their_gradients_are_those_of_the_definition(dtype):
    values, ids, weights, grad = bagged(dtype)
    values.requires_grad_(), weights.requires_grad_()
    out = product_ops.bag(values, ids, weights)
    close(out.detach(), plain_bag(values.detach().numpy(), ids.numpy(), weights.detach().numpy()), dtype)
    of_values, of_weights = torch.autograd.grad((out * grad).sum(), (values, weights))
    want, touched, rows = plain_bag_backward(*(x.detach().numpy() for x in (values, ids, weights, grad)))
    close(of_weights, want, dtype)
    assert of_values.layout == torch.sparse_coo
    assert of_values.coalesce().indices()[0].tolist() == touched.tolist()
    close(of_values.coalesce().values(), rows, dtype)


def test_gradients_of_sums_by_differences():
    values, ids, weights, _ = bagged(np.float64)
    assert torch.autograd.gradcheck(lambda w: product_ops.bag(values, ids, w), weights.requires_grad_())
    # Differences of a table whose gradient is sparse: the same numbers through a dense one.
    dense = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: _Dense.apply(v, ids, weights.detach()), dense)


class _Dense(torch.autograd.Function):
    """`bag`, with the gradient of the values made dense."""

    @staticmethod
    def forward(ctx, values, ids, weights):
        ctx.save_for_backward(values, ids, weights)
        return product_ops.bag(values, ids, weights)

    @staticmethod
    def backward(ctx, grad):
        values, ids, weights = (x.detach() for x in ctx.saved_tensors)
        with torch.enable_grad():
            out = product_ops.bag(values.requires_grad_(), ids, weights)
        return torch.autograd.grad(out, values, grad)[0].to_dense(), None, None


@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"softmax": False}, {"gated": True, "value_dim": 5}])
def test_gradients_of_the_layer_by_differences(options):
    torch.manual_seed(1)
    memory = mx.torch.ProductKeyMemory(
        4, 3, heads=2, k=3, key_dim=5, values=options.pop("values", 7), **options
    ).double()
    names = [name for name, _ in memory.named_parameters() if name != "values.weight"]
    given = [memory.get_parameter(name).detach().clone().requires_grad_() for name in names]
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def run(x, *given):
        return torch.func.functional_call(memory, dict(zip(names, given, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *given))


def test_a_half_precision_layer_learns_as_its_float32_twin_does():
    torch.manual_seed(2)
    memory = mx.torch.ProductKeyMemory(6, 4, heads=2, k=3, key_dim=6)
    half = mx.torch.ProductKeyMemory(6, 4, heads=2, k=3, key_dim=6).bfloat16()
    half.load_state_dict(memory.state_dict())
    memory.load_state_dict({name: x.float() for name, x in half.state_dict().items()})
    with torch.no_grad():
        slots, weights = half.lookup(torch.randn(9, 6).bfloat16())
    one, other = half.values(slots, weights), memory.values(slots, weights)
    assert one.dtype == torch.float32
    torch.testing.assert_close(one, other)
    one.sum().backward(), other.sum().backward()
    assert half.values.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        half.values.weight.grad.to_dense().float(), memory.values.weight.grad.to_dense(), rtol=0.01, atol=0
    )


def test_second_derivatives_are_refused():
    memory = mx.torch.ProductKeyMemory(4, 3, heads=1, k=2, key_dim=4)
    x = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(mx.Unsupported, match="second derivatives"):
        torch.autograd.grad(memory(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_plain_path_in_stretches_is_the_plain_path(dtype, monkeypatch):
    values, ids, weights, grad = bagged(dtype)
    whole = product_plain.bag_backward(values, ids, weights, grad)
    monkeypatch.setattr(product_plain, "_AT_A_TIME", 1)
    for one, other in zip(product_plain.bag_backward(values, ids, weights, grad), whole, strict=True):
        close(one, other, dtype)
    halves = values.to(torch.bfloat16)
    close(product_plain.bag(halves, ids, weights), product_plain.bag(halves.to(weights.dtype), ids, weights), dtype)
