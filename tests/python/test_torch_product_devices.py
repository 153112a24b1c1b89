"""Product-key memory where the native kernels do not apply: the same numbers from plain torch."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

import mnemex as mx  # noqa: E402
from mnemex.torch import product_ops, product_plain  # noqa: E402
from product_parts import plain_lookup, sub_keys  # noqa: E402

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """Give a device where plain torch answers; on the CPU because it is told to."""
    if request.param == "cpu":
        monkeypatch.setattr(product_ops, "_is_native", lambda x: False)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("equal", [False, True])
def test_lookup_gives_the_bits_of_the_native_path(dtype, equal, device, monkeypatch):
    rows, columns, queries = (x.to(dtype) for x in sub_keys(40, 3, 50, 41, 13, seed=4))
    if equal:
        rows[:, 1:], columns[:, 1:] = rows[:, :1], columns[:, :1]
    queries[7, 1, 3] = torch.nan
    found = product_ops.lookup(*(x.to(device) for x in (rows, columns, queries)), 16)
    with monkeypatch.context() as native:
        native.setattr(product_ops, "_is_native", lambda x: True)
        want = product_ops.lookup(rows, columns, queries, 16)
    assert torch.equal(found.ids.cpu(), want.ids)
    assert torch.equal(found.scores.cpu(), want.scores)


def test_a_layer_learns_the_same(device):
    torch.manual_seed(0)
    memory = mx.torch.ProductKeyMemory(12, 9, heads=2, k=5, key_dim=9, values=50, gated=True, batch_norm=True)
    other = copy.deepcopy(memory).to(device)
    x = torch.randn(3, 20, 12)
    want = memory(x)
    out = other(x.to(device))
    torch.testing.assert_close(out.cpu(), want, rtol=1e-4, atol=1e-5)
    want.square().sum().backward()
    out.square().sum().backward()
    for one, two in zip(other.parameters(), memory.parameters(), strict=True):
        assert one.grad.layout == two.grad.layout
        torch.testing.assert_close(one.grad.to_dense().cpu(), two.grad.to_dense(), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_layer_learns_the_same(device):
    torch._dynamo.reset()
    memory = mx.torch.ProductKeyMemory(12, 9, heads=2, k=5, key_dim=9).to(device)
    x = torch.randn(20, 12, device=device)
    want = torch.autograd.grad(memory(x).square().sum(), memory.parameters())
    torch.compile(memory, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    assert memory.values.weight.grad.layout == torch.sparse_coo
    for one, two in zip(memory.parameters(), want, strict=True):
        torch.testing.assert_close(one.grad.to_dense(), two.to_dense(), rtol=1e-4, atol=1e-5)


def test_more_than_is_there_is_padding(device):
    rows, columns, queries = (x.to(device) for x in sub_keys(3, 2, 2, 3, 4))
    scores, ids = product_plain.lookup(rows, columns, queries, 9)
    assert (ids[..., :6].sort(-1).values.cpu() == torch.arange(6)).all()
    assert (ids[..., 6:] == -1).all()
    assert (scores[..., 6:] == -np.inf).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sub_keys_that_are_not_finite_are_never_found(bad, device, monkeypatch):
    rows, columns, queries = sub_keys(9, 2, 7, 6, 5, seed=1)
    rows[0, 2, 1], columns[1, 3, 0], columns[1, 4, 1] = bad, bad, bad
    given = [x.to(device).requires_grad_() for x in (rows, columns, queries)]
    found = product_ops.lookup(*given, 40)  # all that there are, and padding
    with monkeypatch.context() as native:
        native.setattr(product_ops, "_is_native", lambda x: True)
        want = product_ops.lookup(rows, columns, queries, 40)
    assert torch.equal(found.ids.cpu(), want.ids)
    assert torch.equal(found.scores.cpu(), want.scores)
    assert not (found.ids[:, 0] // 6 == 2).any()
    assert (found.ids[:, 0] >= 0).sum(-1).unique().tolist() == [36]
    for one in torch.autograd.grad(torch.where(found.ids >= 0, found.scores, 0).sum(), given):
        assert one.isfinite().all()


def test_scores_that_overflow_are_of_slots(device, monkeypatch):
    rows, columns = torch.tensor([[[-3e38], [3e38], [1.0]]]), torch.tensor([[[-3e38], [3e38]]])
    queries = torch.tensor([[[1.0, 1.0]], [[torch.nan, 1.0]]])
    found = product_ops.lookup(*(x.to(device) for x in (rows, columns, queries)), 7)
    with monkeypatch.context() as native:
        native.setattr(product_ops, "_is_native", lambda x: True)
        want = product_ops.lookup(rows, columns, queries, 7)
    assert torch.equal(found.ids.cpu(), want.ids)
    assert torch.equal(found.scores.cpu(), want.scores)
    assert found.ids[0, 0].tolist() == [3, 5, 1, 2, 4, 0, -1]
    assert found.scores[0, 0, 5] == -np.inf


@pytest.mark.parametrize("k", [1, 2, 7, 33, 200])
def test_few_pairs_have_the_best_k(k, device):
    given = sub_keys(9, 2, 13, 11, 5, dtype=np.float64, seed=k)
    scores, ids = product_ops.lookup(*(x.to(device) for x in given), k)
    want, where = plain_lookup(*given, k)
    assert (ids.cpu().numpy() == where).all()
    np.testing.assert_allclose(scores.cpu(), want, rtol=1e-12, atol=1e-12)
    ranks, _ = product_plain._pairs(k, 13, 11, torch.device("cpu"))
    assert len(ranks) == sum((a + 1) * (b + 1) <= k for a in range(13) for b in range(11))


@pytest.mark.parametrize("where", [-2, 5])
def test_ids_that_are_no_rows_are_refused_on_both_paths(where):
    values = torch.randn(5, 3)
    for table in (values, values.double()):
        ids = torch.tensor([[0, where]])
        with pytest.raises(mx.errors.IdError, match=f"row {where} of a table of 5"):
            product_ops.bag(table, ids, torch.ones(1, 2, dtype=table.dtype))
