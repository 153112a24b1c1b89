"""The memory side: what the bank answers for a query, and the gradient of that answer with respect to the query.

Entries are constants, so the query is all that receives a gradient. The forward pass keeps the ids that were read and
the version they were read from; the backward pass gathers those entries again, a stretch of queries at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnemex.errors import ShapeError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mnemex import Bank, Hits, Snapshot
    from mnemex.torch.local import Scoring

GATHER_BYTES = 64 << 20
"""Bytes of gathered keys and values the backward pass holds at a time."""


class Retrieved(NamedTuple):
    """Output `[B, Hq, Q, Dv]` and log-sum-exp `[B, Hq, Q]` in float32; hits and their weights, where asked for."""

    out: Tensor
    lse: Tensor
    hits: Hits | None = None
    mass: NDArray[np.float32] | None = None


def check_rows(memory: Bank | Snapshot, batch: int) -> None:
    """Refuse a memory of other rows than the batch has, or of another metric than attention's."""
    check_metric(memory)
    if memory.rows not in (1, batch):
        raise ShapeError(f"q has {batch} rows, memory has {memory.rows}: expected as many, or a memory of one row")


def check_metric(memory: Bank | Snapshot) -> None:
    """Refuse a memory whose scores cannot stand in one softmax with local dot products."""
    if memory.metric != "dot":
        raise Unsupported(
            f"memory has metric={memory.metric!r}, whose scores do not fit into one softmax with the dot products of "
            "local keys: make it with metric='dot'"
        )


def check_fits(where: str, bank: Bank | Snapshot, key: Tensor, value: Tensor) -> None:
    """Refuse a bank of other heads or sizes than the keys and values `[B, heads, T, dim]` of a module."""
    has, needs = (bank.heads, bank.key_dim, bank.value_dim), (key.shape[1], key.shape[3], value.shape[3])
    if has != needs:
        raise ShapeError(
            f"the bank of {where} has heads, key_dim and value_dim {has}, the module attends with {needs}: "
            f"make it with Bank(heads={needs[0]}, key_dim={needs[1]}, value_dim={needs[2]})"
        )


def attend(memory: Bank | Snapshot, query: Tensor, k: int | None, scoring: Scoring, *, hits: bool = False) -> Retrieved:
    """Attend to the `k` best entries of each query, or to all of them.

    A query with NaN or infinity in it gives NaN and leaves the others alone. The bank answers in float32; float64
    queries are answered here, over the entries it finds, so that gradients can be checked by differences.
    """
    home = query.device
    query = query.detach()
    if query.dtype == torch.float64:
        return _attend_wide(memory, query, k, scoring, hits=hits)
    if home.type != "cpu":
        query = query.cpu()
    found = memory.attend(query, k, scale=scoring.scale, softcap=scoring.softcap, hits=hits, nonfinite="keep")
    out, lse = torch.from_numpy(found.out), torch.from_numpy(found.lse)
    if home.type != "cpu":
        out, lse = out.to(home), lse.to(home)
    return Retrieved(out, lse, found.hits, found.mass)


def _attend_wide(memory: Bank | Snapshot, query: Tensor, k: int | None, scoring: Scoring, *, hits: bool) -> Retrieved:
    """Attend in float64."""
    home, query = query.device, query.cpu()
    narrow = query.float()
    found = memory.attend(narrow, k, scale=scoring.scale, softcap=scoring.softcap, hits=hits, nonfinite="keep")
    longest = int(np.max(memory.lengths, initial=0))
    if longest == 0 or query.numel() == 0:
        return Retrieved(torch.from_numpy(found.out).to(home, torch.float64),
                         torch.from_numpy(found.lse).to(home, torch.float64), found.hits, found.mass)  # fmt: skip
    read = memory.search(narrow, longest if k is None else min(k, longest), nonfinite="keep")
    outs, sums = [], []
    for span in _spans(query.shape, read.ids.shape[-1], memory):
        keys, values = (torch.from_numpy(x).double() for x in memory.gather(_stretch(read, span)))  # [.., q, k, dim]
        logits = (query[:, :, span, None] @ keys.transpose(-1, -2)).squeeze(-2) * scoring.scale
        if scoring.softcap is not None:
            logits = torch.tanh(logits / scoring.softcap) * scoring.softcap
        logits = logits.masked_fill(torch.from_numpy(read.ids[:, :, span] < 0), -torch.inf)
        lse = logits.logsumexp(-1)
        weights = (logits - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
        outs.append((weights[..., None, :] @ values).squeeze(-2))
        sums.append(lse)
    bad = ~torch.isfinite(query).all(-1)
    out = torch.cat(outs, 2).masked_fill(bad[..., None], torch.nan)
    return Retrieved(out.to(home), torch.cat(sums, 2).masked_fill(bad, torch.nan).to(home), found.hits, found.mass)


def _spans(shape: tuple[int, ...], k: int, memory: Bank | Snapshot) -> Iterator[slice]:
    """Stretches of queries whose entries are gathered together."""
    bytes_per_query = 4 * shape[0] * shape[1] * k * (memory.key_dim + (memory.value_dim or 0))
    step = max(1, GATHER_BYTES // bytes_per_query)
    for start in range(0, shape[2], step):
        yield slice(start, start + step)


def query_gradient(
    snapshot: Bank | Snapshot,
    hits: Hits | None,
    query: Tensor,
    scoring: Scoring,
    *,
    grad: Tensor,
    delta: Tensor,
    lse: Tensor,
) -> Tensor:
    """Gradient of the query through the entries it read.

    With p = exp(logit - lse): scale * sum of p (grad . value - delta) key. `lse` is that of the softmax in which the
    entries took part, less any bias of theirs, and `delta` is grad . out of that softmax, both `[B, Hq, Q]`.
    """
    home, dtype = query.device, query.dtype
    wide = torch.promote_types(dtype, torch.float32)
    query, grad, delta, lse = (x.detach().to("cpu", wide) for x in (query, grad, delta, lse))
    if hits is None:
        return _through_every_entry(snapshot, query, scoring, grad, delta, lse).to(home, dtype)
    ids = np.asarray(hits.ids)
    k = ids.shape[-1]
    if k == 0 or ids.size == 0:
        return torch.zeros(query.shape, dtype=dtype, device=home)
    parts = []
    for span in _spans(query.shape, k, snapshot):
        keys, values = (torch.from_numpy(x).to(wide) for x in snapshot.gather(_stretch(hits, span)))  # [.., q, k, dim]
        valid = torch.from_numpy(ids[:, :, span] >= 0)  # [B, Hq, q, k]
        q, g = query[:, :, span, None], grad[:, :, span, None]  # [B, Hq, q, 1, dim]
        logits = (q @ keys.transpose(-1, -2)).squeeze(-2) * scoring.scale
        of_weights = (g @ values.transpose(-1, -2)).squeeze(-2)
        of_logits = _of_logits(logits, of_weights, valid, scoring, delta[:, :, span], lse[:, :, span])
        parts.append((of_logits[..., None, :] @ keys).squeeze(-2))
    return torch.cat(parts, 2).to(home, dtype)


def _of_logits(
    logits: Tensor, of_weights: Tensor, valid: Tensor, scoring: Scoring, delta: Tensor, lse: Tensor
) -> Tensor:
    """Gradient of the unscaled scores; `logits` are scaled, not yet capped."""
    slope = None
    if scoring.softcap is not None:
        bent = torch.tanh(logits / scoring.softcap)
        logits, slope = bent * scoring.softcap, 1.0 - bent * bent
    weights = (logits - lse[..., None]).exp().masked_fill(~valid, 0.0)
    of_logits = weights * (of_weights - delta[..., None]) * scoring.scale
    return of_logits if slope is None else of_logits * slope


def _through_every_entry(
    snapshot: Bank | Snapshot, query: Tensor, scoring: Scoring, grad: Tensor, delta: Tensor, lse: Tensor
) -> Tensor:
    """Compute the gradient for k = None, where every query of a key/value head read the same entries."""
    batch, heads, n_queries, key_dim = query.shape
    kv_heads, longest = snapshot.heads, int(np.max(snapshot.lengths, initial=0))
    if longest == 0 or query.numel() == 0:
        return torch.zeros_like(query)
    everything = snapshot.search(np.zeros((batch, kv_heads, 1, key_dim), np.float32), longest)
    keys, values = (
        torch.from_numpy(x).to(query.dtype).squeeze(2) for x in snapshot.gather(everything)
    )  # [B, Hkv, n, dim]
    valid = torch.from_numpy(np.asarray(everything.ids) >= 0)  # [B, Hkv, 1, n]
    group = heads // kv_heads
    step = max(1, GATHER_BYTES // (8 * batch * heads * longest))
    parts = []
    for start in range(0, n_queries, step):
        span = slice(start, start + step)
        q, g, d, total = (
            x[:, :, span].reshape(batch, kv_heads, -1, *x.shape[3:]) for x in (query, grad, delta, lse)
        )  # [B, Hkv, group * q, ...]
        logits = q @ keys.transpose(-1, -2) * scoring.scale
        of_logits = _of_logits(logits, g @ values.transpose(-1, -2), valid, scoring, d, total)
        parts.append((of_logits @ keys).reshape(batch, kv_heads * group, -1, key_dim))
    return torch.cat(parts, 2)


def _stretch(hits: Hits, span: slice) -> Hits:
    """Cut the hits to a stretch of queries."""
    return replace(hits, scores=hits.scores[:, :, span], ids=hits.ids[:, :, span])
