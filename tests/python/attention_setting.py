"""Random inputs, a bank with entries, and the dense answer in float64; shared by the tests of the PyTorch adapter."""

from __future__ import annotations

import torch

import mnemex as mx

ROWS, HEADS, KV_HEADS, N_QUERIES, N_KEYS, DIM, ENTRIES = 2, 4, 2, 5, 6, 8, 20


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Setting:
    """Inputs, a bank that holds entries, and the dense answer in float64."""

    def __init__(self, *, n_queries=N_QUERIES, n_keys=N_KEYS, value_dim=DIM, entries=ENTRIES, rows=ROWS):
        self.q = gauss(rows, HEADS, n_queries, DIM, seed=1)
        self.k = gauss(rows, KV_HEADS, n_keys, DIM, seed=2)
        self.v = gauss(rows, KV_HEADS, n_keys, value_dim, seed=3)
        self.keys = gauss(rows, KV_HEADS, entries, DIM, seed=4)
        self.values = gauss(rows, KV_HEADS, entries, value_dim, seed=5)
        self.bank = mx.Bank(rows=rows, heads=KV_HEADS, key_dim=DIM, value_dim=value_dim)
        if entries:
            self.bank.write(self.keys, self.values)

    def inputs(self):
        return [x.clone().requires_grad_() for x in (self.q, self.k, self.v)]

    def dense(self, q, k, v, *, scale=DIM**-0.5, softcap=None, mask=None, causal=False, sink=None, kept=None):
        repeat = HEADS // KV_HEADS
        q = q.double()
        k, v, keys, values = (x.double().repeat_interleave(repeat, 1) for x in (k, v, self.keys, self.values))

        def logits(x):
            s = q @ x.transpose(-1, -2) * scale
            return s if softcap is None else softcap * torch.tanh(s / softcap)

        near = logits(k)
        if causal:
            near = near.masked_fill(torch.ones(near.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        if mask is not None:
            near = near.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else near + mask.double()
        parts = [logits(keys), near]
        if sink is not None:
            parts.append(sink.double()[None, :, None, None].expand(*q.shape[:3], 1))
        weights = torch.softmax(torch.cat(parts, -1), -1)
        n = keys.shape[2]
        local_weights = weights[..., n : n + k.shape[2]]
        if kept is not None:
            local_weights = local_weights * kept
        return weights[..., :n] @ values + local_weights @ v


def close(got, want, tolerance=1e-5):
    assert got.shape == want.shape
    assert (got.double() - want.double()).abs().max() <= tolerance * want.double().abs().max()


def same_gradients(mine, theirs, tolerance=2e-5):
    for a, b in zip(mine, theirs, strict=True):
        close(a.grad, b.grad, tolerance)
