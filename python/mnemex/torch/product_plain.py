"""Product-key lookup and the weighted sum of values in plain torch: any device, any float dtype.

It says what the native kernels have to answer, and answers where they do not apply: other devices, and float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

# Numbers of a table that a backward pass holds at a time: 64 MB of float32.
_AT_A_TIME = 1 << 24


class Found(NamedTuple):
    """Scores `[T, heads, k]`, descending, and ids `[T, heads, k]`; padded with -inf and -1."""

    scores: Tensor
    ids: Tensor


class BagGradients(NamedTuple):
    """Gradient of the weights `[T, m]`, and of the rows read: `touched` `[u]`, ascending, and `values` `[u, dv]`."""

    weights: Tensor
    touched: Tensor
    values: Tensor


def lookup(rows: Tensor, columns: Tensor, queries: Tensor, k: int) -> Found:
    """Find the k best of all pairs of a row and a column, with gradients for their scores.

    Parameters
    ----------
    rows, columns
        Sub-keys `[heads, n1, d1]` and `[heads, n2, d2]`; pair (i, j) is slot i * n2 + j.
    queries
        `[T, heads, d1 + d2]`: the first d1 numbers meet rows, the others columns.
    k
        Slots per query and head.

    Returns
    -------
    Found
        Scores in float32 (of float64 input in float64) and ids, by score descending, then id ascending. A query with
        NaN or infinity in it finds nothing.

    Notes
    -----
    Sums are made in float64, where the device has it, and rounded once. Slots that differ by less than that rounding
    are a tie, which the smaller id wins among the k rows and k columns that are looked at.
    """
    out = torch.float64 if queries.dtype == torch.float64 else torch.float32
    wide = torch.float32 if queries.device.type == "mps" else torch.float64
    split = rows.shape[-1]
    finite = queries.isfinite().all(-1, keepdim=True)  # [T, heads, 1]
    clean = torch.where(finite, queries, 0).to(wide)
    first = torch.einsum("thd,hnd->thn", clean[..., :split], rows.to(wide))
    second = torch.einsum("thd,hnd->thn", clean[..., split:], columns.to(wide))
    of_rows, of_columns = (_best(half, min(k, half.shape[-1])) for half in (first, second))  # [T, heads, <= k]
    pairs = first.gather(-1, of_rows)[..., :, None] + second.gather(-1, of_columns)[..., None, :]
    ids = of_rows[..., :, None] * columns.shape[1] + of_columns[..., None, :]
    scores, ids = pairs.to(out).flatten(-2), ids.flatten(-2)  # [T, heads, <= k * k]
    ids, order = ids.sort(-1)
    scores = scores.gather(-1, order)
    best = _best(scores, min(k, scores.shape[-1]))
    scores, ids = scores.gather(-1, best), ids.gather(-1, best)
    there = finite & (scores > -torch.inf)  # neither NaN nor -inf
    scores, ids = torch.where(there, scores, -torch.inf), torch.where(there, ids, -1)
    missing = k - scores.shape[-1]
    if missing > 0:
        scores = nn.functional.pad(scores, (0, missing), value=-torch.inf)
        ids = nn.functional.pad(ids, (0, missing), value=-1)
    return Found(scores, ids)


def _best(scores: Tensor, k: int) -> Tensor:
    """Where the k largest are `[..., k]`, largest first, the earlier of two equal ones first, NaN last."""
    ranked = scores.detach()
    order = torch.where(ranked.isnan(), -torch.inf, ranked).sort(dim=-1, descending=True, stable=True).indices
    return order[..., :k]


def bag(values: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Sum rows of `values` `[n, dv]` by weight: `[T, dv]` of ids and weights `[T, m]`; id -1 adds nothing."""
    there = ids >= 0
    ids, weights = torch.where(there, ids, 0), torch.where(there, weights, 0)
    if values.dtype == weights.dtype:
        return nn.functional.embedding_bag(ids, values, mode="sum", per_sample_weights=weights)
    out = weights.new_empty(len(ids), values.shape[1])
    for part in _parts(ids, values):
        out[part] = torch.einsum("tm,tmd->td", weights[part], values[ids[part]].to(weights.dtype))
    return out


def _parts(ids: Tensor, values: Tensor) -> Iterator[slice]:
    """Divide tokens so that the rows they read are few enough to lie in memory at once."""
    step = max(1, _AT_A_TIME // max(1, ids.shape[1] * values.shape[1]))
    return (slice(start, start + step) for start in range(0, len(ids), step))


def bag_backward(values: Tensor, ids: Tensor, weights: Tensor, grad: Tensor) -> BagGradients:
    """Take the gradient of the sums `[T, dv]` back to weights and to the rows that were read."""
    there = ids >= 0
    touched, places = torch.where(there, ids, 0).unique(return_inverse=True)
    of_values = grad.new_zeros(len(touched), values.shape[1])
    of_weights = torch.zeros_like(weights)
    for part in _parts(ids, values):
        weighed = torch.where(there[part], weights[part], 0)[..., None] * grad[part][:, None]  # [part, m, dv]
        of_values.index_add_(0, places[part].flatten(), weighed.flatten(0, 1))
        read = values[touched[places[part]]].to(grad.dtype)
        of_weights[part] = torch.where(there[part], torch.einsum("tmd,td->tm", read, grad[part]), 0)
    read_at_all = torch.zeros(len(touched), dtype=torch.bool, device=ids.device)
    read_at_all[places[there]] = True
    return BagGradients(of_weights, touched[read_at_all], of_values[read_at_all])
