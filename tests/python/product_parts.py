"""What tests of product-key memory share: the definition in plain loops, and inputs."""

from __future__ import annotations

import numpy as np


def plain_lookup(rows, columns, queries, k):
    """Score all pairs in float64, round once, and sort them all: score descending, then id ascending."""
    rows, columns, queries = (np.asarray(x) for x in (rows, columns, queries))
    out = queries.dtype
    heads, n2, split = rows.shape[0], columns.shape[1], rows.shape[2]
    n_tokens = queries.shape[0]
    scores = np.full((n_tokens, heads, k), -np.inf, out)
    ids = np.full((n_tokens, heads, k), -1, np.int64)
    for t in range(n_tokens):
        for h in range(heads):
            q = queries[t, h].astype(np.float64)
            if not np.isfinite(q).all():
                continue
            first, second = rows[h].astype(np.float64) @ q[:split], columns[h].astype(np.float64) @ q[split:]
            every = (first[:, None] + second[None]).astype(out).ravel()
            order = np.lexsort((np.arange(len(every)), -every))
            order = order[~np.isnan(every[order])][:k]
            scores[t, h, : len(order)], ids[t, h, : len(order)] = every[order], order
            assert n2 * rows.shape[1] == len(every)
    return scores, ids


def plain_lookup_backward(rows, columns, queries, ids, grad):
    rows, columns, queries, grad = (np.asarray(x, np.float64) for x in (rows, columns, queries, grad))
    heads, n2, split = rows.shape[0], columns.shape[1], rows.shape[2]
    of_queries, of_rows, of_columns = (np.zeros_like(x) for x in (queries, rows, columns))
    for (t, h, j), slot in np.ndenumerate(ids):
        if slot >= 0:
            i, c = divmod(int(slot), n2)
            of_queries[t, h, :split] += grad[t, h, j] * rows[h, i]
            of_queries[t, h, split:] += grad[t, h, j] * columns[h, c]
            of_rows[h, i] += grad[t, h, j] * queries[t, h, :split]
            of_columns[h, c] += grad[t, h, j] * queries[t, h, split:]
    assert heads == queries.shape[1]
    return of_queries, of_rows, of_columns


def plain_bag(values, ids, weights):
    out = np.zeros((len(ids), values.shape[1]))
    for (t, j), i in np.ndenumerate(ids):
        if i >= 0:
            out[t] += np.float64(weights[t, j]) * values[i]
    return out


def plain_bag_backward(values, ids, weights, grad):
    of_weights, of_values = np.zeros(weights.shape), np.zeros(values.shape)
    for (t, j), i in np.ndenumerate(ids):
        if i >= 0:
            of_weights[t, j] = values[i].astype(np.float64) @ grad[t]
            of_values[i] += np.float64(weights[t, j]) * grad[t]
    touched = np.unique(ids[ids >= 0]).astype(np.int64)
    return of_weights, touched, of_values[touched]


def sub_keys(n_tokens, heads, n1, n2, key_dim, *, dtype=np.float32, seed=0):
    """Rows, columns and queries as tensors, for a width that may be odd."""
    import torch

    rng = np.random.default_rng(seed)
    half = key_dim // 2
    shapes = (heads, n1, key_dim - half), (heads, n2, half), (n_tokens, heads, key_dim)
    return [torch.from_numpy(rng.standard_normal(shape).astype(dtype)) for shape in shapes]
