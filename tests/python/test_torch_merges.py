"""Learned merges: a bias on the memory's logits, and a gate between two softmaxes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch adapter needs torch")

import mnemex as mx  # noqa: E402
from attention_setting import DIM, HEADS, ROWS, Setting, close, gauss  # noqa: E402


@pytest.mark.parametrize("make", [mx.torch.Bias, mx.torch.Gate])
def test_a_learned_merge_has_one_number_per_query_head(make):
    merge = make(HEADS)
    (parameter,) = merge.parameters()
    assert parameter.shape == (HEADS,)
    s = Setting()
    with pytest.raises(mx.Error, match="heads"):
        mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=4, merge=make(HEADS + 1))


def test_a_bias_of_zero_is_joint_and_a_far_negative_one_is_local():
    s = Setting()
    bias = mx.torch.Bias(HEADS)
    joint = mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=4)
    close(mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=4, merge=bias).detach(), joint, 1e-6)
    with torch.no_grad():
        bias.weight.fill_(-1e4)
    alone = torch.nn.functional.scaled_dot_product_attention(s.q, s.k, s.v, enable_gqa=True)
    close(mx.torch.attention(s.q, s.k, s.v, memory=s.bank, top_k=4, merge=bias).detach(), alone, 1e-6)


@pytest.mark.parametrize("kind", [mx.torch.Bias, mx.torch.Gate])
@pytest.mark.parametrize("k", [None, 3])
def test_gradients_of_learned_merges_by_finite_differences(kind, k):
    s = Setting(n_queries=2, n_keys=3)
    merge = kind(HEADS)
    with torch.no_grad():
        merge.weight.copy_(torch.tensor([0.3, -1.0, 0.7, 0.0]))
    g = gauss(ROWS, HEADS, 2, DIM, seed=70)
    q, key, v = s.inputs()

    def loss():
        return (mx.torch.attention(q, key, v, memory=s.bank, top_k=k, merge=merge).double() * g).sum()

    loss().backward()
    for x in (q, key, v, merge.weight):
        flat = x.data.view(-1)
        for i in range(0, flat.numel(), max(1, flat.numel() // 5)):
            before, step = float(flat[i]), 1e-2
            flat[i] = before + step
            up = loss().item()
            flat[i] = before - step
            down = loss().item()
            flat[i] = before
            assert abs((up - down) / (2 * step) - float(x.grad.view(-1)[i])) < 5e-3
