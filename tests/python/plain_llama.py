"""A Llama written out layer by layer, with attention that a test gives: what published adapters are compared on."""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def turned(x, positions, theta=10000.0):
    """Rotary positions, in halves: `[B, heads, T, D]` at `positions` `[T]`."""
    half = x.shape[-1] // 2
    angle = positions[:, None].to(x) * theta ** (-torch.arange(half).to(x) / half)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def local(q, k, v):
    """Causal attention with grouped heads, over keys of which the last belong to the queries."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    n, m = q.shape[2], k.shape[2]
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.masked_fill(torch.ones(n, m, dtype=torch.bool).triu(m - n + 1), -torch.inf).softmax(-1) @ v


def logits(model, ids, attend, add=None, start=0):
    """Logits of `ids` at positions from `start` on.

    `attend(layer, q, k, v, plain_q, plain_k)` gives `[B, heads, T, D]`; `add(layer, hidden)`, what is added to the
    output of self attention.
    """
    config, positions = model.config, torch.arange(start, start + ids.shape[1])
    dim = config.hidden_size // config.num_attention_heads

    def norm(x, of):
        return of.weight * x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()

    def heads(x):
        return x.unflatten(-1, (-1, dim)).transpose(1, 2)

    hidden = model.model.embed_tokens.weight[ids]
    for index, layer in enumerate(model.model.layers):
        x, attention = norm(hidden, layer.input_layernorm), layer.self_attn
        q, k, v = (heads(x @ p.weight.T) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        out = attend(index, turned(q, positions), turned(k, positions), v, q, k)
        out = out.transpose(1, 2).flatten(2) @ attention.o_proj.weight.T
        hidden = hidden + (out if add is None else out + add(index, x))
        x, mlp = norm(hidden, layer.post_attention_layernorm), layer.mlp
        hidden = hidden + (silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
    return norm(hidden, model.model.norm) @ model.lm_head.weight.T
