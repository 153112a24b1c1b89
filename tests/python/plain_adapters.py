"""What published adapters must agree with, from their definition, token by token in PyTorch alone."""

from __future__ import annotations

import torch


def prepended(q, k, v, far_q, far_k, far_v, seen, scale):
    """CAMELoT's augmented attention.

    `far_k`, `far_v` `[B, Hkv, K, n, D]` are the pairs that each local token found, NaN where it found none; `far_q` the
    queries as pairs see them; `seen` `[Q, K]` or `[B, Q, K]` which local tokens a query may attend to.
    """
    batch, heads, n_queries, _ = q.shape
    group = heads // k.shape[1]
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for b in range(batch):
        for h in range(heads):
            for i in range(n_queries):
                tokens = (seen if seen.ndim == 2 else seen[b])[i].nonzero()[:, 0].tolist()
                keys = far_k[b, h // group, tokens].flatten(0, 1)
                found = ~keys.isnan().any(-1)
                values = far_v[b, h // group, tokens].flatten(0, 1)[found]
                logits = torch.cat([keys[found] @ far_q[b, h, i], k[b, h // group, tokens] @ q[b, h, i]]) * scale
                if len(logits):
                    out[b, h, i] = logits.softmax(0) @ torch.cat([values, v[b, h // group, tokens]])
    return out


def nearest(keys, stored, values, n, score):
    """Give the `n` stored pairs that score best with each of `keys` `[B, H, K, D]`; NaN where there are fewer."""
    shape = (*keys.shape[:3], n)
    found = [keys.new_full((*shape, x.shape[-1]), torch.nan) for x in (stored, values)]
    for b, h, j in torch.cartesian_prod(*map(torch.arange, keys.shape[:3])).tolist():
        best = score(stored[b, h], keys[b, h, j]).topk(min(n, stored.shape[2])).indices
        for x, of in zip(found, (stored, values), strict=True):
            x[b, h, j, : len(best)] = of[b, h, best].to(x)
    return found


def cosine(stored, key):
    """Cosines of `[n, D]` with one key."""
    return torch.nn.functional.cosine_similarity(stored, key[None].to(stored), dim=-1)


def dot(stored, key):
    """Dot products of `[n, D]` with one key."""
    return stored @ key.to(stored)


class PlainNeurocache:
    """Neurocache of one row, from the paper: a list of states, of which each token reads some."""

    def __init__(self, module, capacity):
        self.module, self.capacity, self.states, self.first = module, capacity, [], 0
        self.reader, self.context = module.reader, module.context

    def state(self, h):
        m = self.module
        z = h @ m.project.weight.T
        z = (z - z.mean()) / (z.var(unbiased=False) + m.norm.eps).sqrt()
        return z * m.norm.weight + m.norm.bias

    def finds(self, h):
        """States in the order of their places, by id; a neighbour that is not there is left out."""
        z = self.state(h).detach()
        near = sorted(
            range(len(self.states)), key=lambda i: (float((self.states[i] - z.to(self.states[i])).square().sum()), i)
        )
        found = []
        for i in near[: self.reader.k]:
            around = [i, *range(i - self.reader.before, i), *range(i + 1, i + self.reader.after + 1)]
            found += [j for j in around if 0 <= j < len(self.states)]
        return found

    def read(self, hidden, layer=0, by=None):
        """Give what is added to the output of self attention, `[T, dim]`; `by` are the states that look up."""
        block = self.module.blocks[layer]
        finds = [self.finds(h) for h in (hidden if by is None else by)]
        out = []
        for i, h in enumerate(hidden):
            chosen = [j for t in range(max(0, i - self.context + 1), i + 1) for j in finds[t]]
            heads = []
            for head in range(block.heads):
                kv, d = head * block.kv_heads // block.heads, block.head_dim
                q = block.query.weight[head * d : (head + 1) * d] @ h
                if not chosen:
                    heads.append(torch.zeros(d, dtype=h.dtype))
                    continue
                states = torch.stack([self.states[j] for j in chosen]).to(h)
                k, v = (states @ w.weight[kv * d : (kv + 1) * d].T for w in (block.key, block.value))
                heads.append((k @ q / d**0.5).softmax(0) @ v)
            out.append(block.out.weight @ torch.cat(heads))
        return torch.stack(out)

    def write(self, hidden):
        self.states += [self.state(h).detach().float() for h in hidden]
        self.states = self.states[-self.capacity :]
