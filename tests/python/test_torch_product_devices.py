"""Product-key memory where the native kernels do not apply: the same numbers from plain torch."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

import mnemex as mx  # noqa: E402
from mnemex.torch import product_ops, product_plain  # noqa: E402
from product_parts import sub_keys  # noqa: E402

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
