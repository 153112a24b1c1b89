"""A Llama written out, with attention as the argument: what recipes and hooks are held against."""

from __future__ import annotations

import torch

import plain_adapters as plain


def turned(x, cos, sin):
    """Rotate by position, the halves of a vector being its pairs."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


@torch.no_grad()
def llama(model, ids, attend, add=None, *, start=0):
    """Give the logits of `[B, T]` tokens from position `start` on.

    `attend(layer, q, k, v, turn)` gets heads `[B, H, T, D]` before positions, and what turns them. `add(layer, hidden)`
    is added to what attention gives.
    """
    base = model.model
    x = base.embed_tokens(ids)
    at = start + torch.arange(ids.shape[1])[None]
    cos, sin = (y[:, None] for y in base.rotary_emb(x, at))
    for layer, block in enumerate(base.layers):
        hidden, a = block.input_layernorm(x), block.self_attn
        q, k, v = (p(hidden).unflatten(-1, (-1, a.head_dim)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        out = attend(layer, q, k, v, lambda y: turned(y, cos, sin))
        x = x + a.o_proj(out.transpose(1, 2).flatten(2)) + (0.0 if add is None else add(layer, hidden))
        x = x + block.mlp(block.post_attention_layernorm(x))
    return model.lm_head(base.norm(x))


def causal(n):
    """Which of n tokens each sees."""
    return torch.ones(n, n, dtype=torch.bool).tril()


def alone(layer, q, k, v, turn):
    """Attend to the local tokens."""
    none = k.new_full((*k.shape[:3], 0, k.shape[-1]), torch.nan)
    return plain.prepended(turn(q), turn(k), v, turn(q), none, none, causal(q.shape[2]), q.shape[-1] ** -0.5)


class EachQuery:
    """Attention in which every query of every head reads entries of its own.

    `far(q, turned)` says which of the two queries the entries are compared with; `choose(keys, query)` which entries.
    `gate` None: one softmax; else the share of the far side, per head.
    """

    def __init__(self, far, choose, gate=None):
        self.far, self.choose, self.gate = far, choose, gate
        self.entries = {}  # (layer, row, head): keys, values

    def __call__(self, layer, q, k, v, turn):
        near_q, near_k, far_q = turn(q), turn(k), self.far(q, turn(q))
        out, group = torch.zeros(*q.shape[:3], v.shape[-1]), q.shape[1] // k.shape[1]
        for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
            lane, scale = h // group, q.shape[-1] ** -0.5
            near = near_k[b, lane, : i + 1] @ near_q[b, h, i] * scale
            keys, values = self.entries.get((layer, b, lane), (k[b, lane, :0], v[b, lane, :0]))
            chosen = self.choose(keys, far_q[b, h, i])
            far, values, local = keys[chosen] @ far_q[b, h, i] * scale, values[chosen], v[b, lane, : i + 1]
            if self.gate is None or not len(far):
                out[b, h, i] = torch.cat([far, near]).softmax(0) @ torch.cat([values, local])
            else:
                g = self.gate[h]
                out[b, h, i] = g * (far.softmax(0) @ values) + (1 - g) * (near.softmax(0) @ local)
        return out

    def append(self, layer, k, v):
        """Store `[B, H, T, D]`."""
        for b, h in torch.cartesian_prod(*map(torch.arange, k.shape[:2])).tolist():
            old = self.entries.get((layer, b, h), (k[b, h, :0], v[b, h, :0]))
            self.entries[layer, b, h] = tuple(torch.cat(x) for x in zip(old, (k[b, h], v[b, h]), strict=True))
