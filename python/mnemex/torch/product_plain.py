"""Product-key lookup and the weighted sum of values in plain torch: any device, any float dtype.

It says what the native kernels have to answer, and answers where they do not apply: other devices, and float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mnemex.errors import IdError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Numbers of a table that a backward pass holds at a time: 64 MB of float32.
_AT_A_TIME = 1 << 24

# The id of what is no slot, until all are sorted: larger than any.
_NO_SLOT = torch.iinfo(torch.int64).max


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
    Sums are made in float64, where the device has it, and rounded once. A sub-key with NaN or infinity in it is never
    found. A score that overflows float32 is infinite, and its slot is one as any other.

    Of the k best rows and the k best columns only pairs of ranks with i * j <= k are looked at, i and j from 1: any
    other pair is beaten, or met, by k of these. So the answer may differ from the native one only at the k-th score, in
    which of several slots come: those with this very score after rounding, though the scores of their halves differ.
    The native path takes the smallest ids of all such slots, this one the smallest of those it looks at.
    """
    out = torch.float64 if queries.dtype == torch.float64 else torch.float32
    wide = torch.float32 if queries.device.type == "mps" else torch.float64
    split = rows.shape[-1]
    finite = queries.isfinite().all(-1, keepdim=True)  # [T, heads, 1]
    clean = torch.where(finite, queries, 0).to(wide)
    (first, of_rows), (second, of_columns) = (
        _best_half(part, keys, k) for part, keys in ((clean[..., :split], rows), (clean[..., split:], columns))
    )
    i, j = _pairs(k, first.shape[-1], second.shape[-1], queries.device)
    first, second = first[..., i], second[..., j]
    there = finite & first.isfinite() & second.isfinite()  # [T, heads, about k ln k]
    ids = torch.where(there, of_rows[..., i] * columns.shape[1] + of_columns[..., j], _NO_SLOT)
    scores = torch.where(there, (first + second).to(out), -torch.inf)
    ids, order = ids.sort(-1)
    scores = scores.gather(-1, order)
    # A slot may score -inf too; it comes before those that are none, as its id is smaller.
    best = scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]
    scores, ids = scores.gather(-1, best), ids.gather(-1, best)
    ids = torch.where(ids == _NO_SLOT, -1, ids)
    missing = k - scores.shape[-1]
    if missing > 0:
        scores = nn.functional.pad(scores, (0, missing), value=-torch.inf)
        ids = nn.functional.pad(ids, (0, missing), value=-1)
    return Found(scores, ids)


def _best_half(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Score sub-keys: the k best scores `[T, heads, <= k]`, the earlier of two equal ones first, and whose they are.

    What is not finite comes last. Sub-keys that are not score NaN and, as nothing is multiplied by them, teach nothing.
    """
    finite = keys.isfinite().all(-1)  # [heads, n]
    scores = torch.einsum("thd,hnd->thn", queries, torch.where(finite[..., None], keys, 0).to(queries.dtype))
    scores = torch.where(finite, scores, torch.nan)
    ranked = torch.where(scores.isfinite(), scores, -torch.inf).detach()
    best = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return scores.gather(-1, best), best


def _pairs(k: int, n1: int, n2: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """List the pairs of ranks, from 0, that k or fewer pairs are not below: (i + 1) * (j + 1) <= k."""
    pairs = [(i, j) for i in range(n1) for j in range(min(k // (i + 1), n2))]
    i, j = torch.tensor(pairs, dtype=torch.int64, device=device).unbind(-1)
    return i, j


def bag(values: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Sum rows of `values` `[n, dv]` by weight: `[T, dv]` of ids and weights `[T, m]`; id -1 adds nothing.

    Raises
    ------
    IdError
        On the CPU: an id that is no row and not -1. Elsewhere one would wait for the answer; below -1 adds nothing.
    """
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(x) for x in ids.aminmax())
        if low < -1 or high >= len(values):
            raise IdError(f"ids name row {low if low < -1 else high} of a table of {len(values)}")
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
