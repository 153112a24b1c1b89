"""Gradients of attention with a memory, checked by differences in float64 and against dense attention."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

import mnemex as mx  # noqa: E402
from attention_setting import ENTRIES, HEADS, KV_HEADS, Setting, close, gauss  # noqa: E402
from mnemex.torch import retrieved  # noqa: E402

MERGES = {"joint": lambda: "joint", "bias": lambda: mx.torch.Bias(HEADS), "gate": lambda: mx.torch.Gate(HEADS)}


def dense(s, q, k, v, kind, numbers):
    repeat = HEADS // KV_HEADS
    k, v, keys, values = (x.double().repeat_interleave(repeat, 1) for x in (k, v, s.keys, s.values))
    near, far = (q @ x.transpose(-1, -2) * q.shape[-1] ** -0.5 for x in (k, keys))
    if kind == "gate":
        share = torch.sigmoid(numbers)[None, :, None, None]
        return share * (far.softmax(-1) @ values) + (1 - share) * (near.softmax(-1) @ v)
    if kind == "bias":
        far = far + numbers[None, :, None, None]
    return torch.cat([far, near], -1).softmax(-1) @ torch.cat([values, v], 2)


@pytest.mark.parametrize("stretches", [False, True])
@pytest.mark.parametrize("top_k", [None, ENTRIES])
@pytest.mark.parametrize("kind", MERGES)
def test_point_10_gradients_by_differences_and_against_dense_attention(kind, top_k, stretches, monkeypatch):
    if stretches:
        monkeypatch.setattr(retrieved, "GATHER_BYTES", 1)
        monkeypatch.setattr(retrieved, "LOGIT_BYTES", 1)
    s = Setting(n_queries=2, n_keys=3, rows=1, entries=ENTRIES)
    q, k, v = (x.double().requires_grad_() for x in (s.q, s.k, s.v))
    numbers = gauss(HEADS, seed=70).double().requires_grad_()
    merge = MERGES[kind]()
    if kind != "joint":
        merge.double()

    def mine(q, k, v, numbers):
        if kind == "joint":
            return mx.torch.attention(q, k, v, memory=s.bank, top_k=top_k) + 0.0 * numbers.sum()
        return torch.func.functional_call(Attention(merge, s.bank, top_k), {"merge.weight": numbers}, (q, k, v))

    assert torch.autograd.gradcheck(mine, (q, k, v, numbers))
    g = gauss(1, HEADS, 2, 8, seed=71).double()
    got = torch.autograd.grad((mine(q, k, v, numbers) * g).sum(), (q, k, v, numbers))
    want = torch.autograd.grad((dense(s, q, k, v, kind, numbers) * g).sum() + 0.0 * numbers.sum(), (q, k, v, numbers))
    for one, other in zip(got, want, strict=True):
        if other.abs().max() > 0:
            close(one, other, 1e-12)


class Attention(torch.nn.Module):
    """`attention` with its merge as a submodule, whose numbers can be given from outside."""

    def __init__(self, merge, bank, top_k):
        super().__init__()
        self.merge, self.bank, self.top_k = merge, bank, top_k

    def forward(self, q, k, v):
        return mx.torch.attention(q, k, v, memory=self.bank, top_k=self.top_k, merge=self.merge)


def test_a_bad_query_in_float64_is_nan_alone():
    s = Setting()
    q = s.q.double()
    q[0, 1, 2, 3] = torch.nan
    for k in (None, 5):
        out = mx.torch.attention(q, s.k.double(), s.v.double(), memory=s.bank, top_k=k)
        assert torch.isnan(out[0, 1, 2]).all()
        assert int(torch.isnan(out).sum()) == q.shape[-1]
