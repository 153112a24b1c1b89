"""The memory side: what the bank answers for a query, and the gradient of that answer with respect to the query.

Entries are constants, so the query is all that receives a gradient. The forward pass keeps the ids that were read and
the version they were read from; on the way back the bank reads those entries again. float64, for checks by differences,
gathers them, a stretch of queries at a time; so does a bank that chooses by cosine, since its weights are of dot
products all the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnemex import Hits
from mnemex.errors import ShapeError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mnemex import Bank, Snapshot
    from mnemex.parts import Reader
    from mnemex.torch.local import Scoring

GATHER_BYTES = 64 << 20
"""Bytes of gathered keys and values the backward pass holds at a time."""

STRETCH, LOGIT_BYTES = 4096, 4 << 20
"""Where every entry is read: ids at a time, at most, and bytes of logits, which are to stay in a processor's cache."""


METRICS = ("dot", "cos")
"""By which entries may be chosen. They are weighed by dot products, as local keys are."""

ALONE, ALONE_READS = 1 << 28, 1 << 24
"""Multiplications, and numbers of keys, up to which one thread had better answer alone while those of PyTorch spin, as
they do for some milliseconds after each operation: they hold the other processors, so a thread that is woken there is
waited for longer than it saves. Measured on two processors in a model, 3 heads with 192 queries each over 1,000 entries
in the mean: 1.6 ms with one thread, 2.0 with two. Reading all these keys takes about as long."""


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
    if memory.metric not in METRICS:
        raise Unsupported(
            f"memory has metric={memory.metric!r}, whose scores do not fit into one softmax with the dot products of "
            "local keys: make it with metric='dot', or 'cos' to choose entries by cosine"
        )


def check_fits(where: str, bank: Bank | Snapshot, key: Tensor, value: Tensor) -> None:
    """Refuse a bank of other heads or sizes than the keys and values `[B, heads, T, dim]` of a module."""
    has, needs = (bank.heads, bank.key_dim, bank.value_dim), (key.shape[1], key.shape[3], value.shape[3])
    if has != needs:
        raise ShapeError(
            f"the bank of {where} has heads, key_dim and value_dim {has}, the module attends with {needs}: "
            f"make it with Bank(heads={needs[0]}, key_dim={needs[1]}, value_dim={needs[2]})"
        )


def attend(
    memory: Bank | Snapshot, query: Tensor, k: int | Reader | None, scoring: Scoring, *, hits: bool = False
) -> Retrieved:
    """Attend to the `k` best entries of each query, to what a reader takes, or to all of them.

    A query with NaN or infinity in it gives NaN and leaves the others alone. The bank answers in float32; float64
    queries are answered here, over the entries it finds, so that gradients can be checked by differences; and so are
    those of a bank that finds entries by cosine, whose weights are of dot products.
    """
    home = query.device
    query = query.detach()
    if query.dtype == torch.float64 or memory.metric != "dot":
        return _attend_wide(memory, query, k, scoring, hits=hits)
    if home.type != "cpu":
        query = query.cpu()
    longest = int(np.max(memory.lengths, initial=0))
    # Every entry costs two products.
    work = query.numel() * longest * (2 if k is None else 1)
    reads = query.shape[0] * memory.heads * longest * memory.key_dim
    found = memory.attend(
        query, k, scale=scoring.scale, softcap=scoring.softcap, hits=hits, nonfinite="keep",
        threads=threads_for(home, work, reads),
    )  # fmt: skip
    out, lse = torch.from_numpy(found.out), torch.from_numpy(found.lse)
    if home.type != "cpu":
        out, lse = out.to(home), lse.to(home)
    return Retrieved(out, lse, found.hits, found.mass)


def threads_for(home: torch.device, multiplications: int, reads: int) -> int | None:
    """Say how many threads a call is worth; None: as many as the bank takes."""
    spin = home.type == "cpu" and torch.get_num_threads() > 1
    return 1 if spin and multiplications < ALONE and reads < ALONE_READS else None


def _attend_wide(
    memory: Bank | Snapshot, query: Tensor, k: int | Reader | None, scoring: Scoring, *, hits: bool
) -> Retrieved:
    """Attend to what the bank finds with dot products taken here, in float32 or wider."""
    home, query = query.device, query.cpu()
    query = query.to(torch.promote_types(query.dtype, torch.float32))
    bad = ~torch.isfinite(query).all(-1)
    found = mass = None
    if k is None:
        out, lse = _every_entry_wide(memory, query, scoring)
    else:
        found = memory.attend(
            query.float(), k, scale=scoring.scale, softcap=scoring.softcap, hits=True, nonfinite="keep"
        )
        out, lse, mass = torch.from_numpy(found.out).to(query), torch.from_numpy(found.lse).to(query), found.mass
        if found.hits is not None and found.hits.ids.size:
            out, lse, mass = _hits_wide(memory, found.hits, query, scoring)
    out, lse = out.masked_fill(bad[..., None], torch.nan), lse.masked_fill(bad, torch.nan)
    seen = (None, None) if found is None or not hits else (found.hits, mass)
    return Retrieved(out.to(home), lse.to(home), *seen)


def _hits_wide(
    memory: Bank | Snapshot, hits: Hits, query: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, NDArray[np.float32]]:
    """Attend to what was found; output, log-sum-exp, and the weight of each place among the places of its query."""
    outs, sums, masses, repeated = [], [], [], torch.from_numpy(~hits.distinct)
    for span in _spans(query.shape, hits.ids.shape[-1], memory):
        keys, values = (torch.from_numpy(x).to(query) for x in memory.gather(_stretch(hits, span)))  # [.., q, k, dim]
        logits = _logits((query[:, :, span, None] @ keys.transpose(-1, -2)).squeeze(-2), scoring)
        logits = logits.masked_fill(repeated[:, :, span], -torch.inf)
        lse = logits.logsumexp(-1)
        weights = _weights(logits, lse)
        outs.append((weights[..., None, :] @ values).squeeze(-2))
        sums.append(lse)
        masses.append(weights.float())
    return torch.cat(outs, 2), torch.cat(sums, 2), torch.cat(masses, 2).numpy()


def _every_entry_wide(memory: Bank | Snapshot, query: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Attend to every entry; output and log-sum-exp."""
    out, lse = query.new_zeros(*query.shape[:3], memory.value_dim or 0), query.new_full(query.shape[:3], -torch.inf)
    if not len(memory) or query.numel() == 0:
        return out, lse
    outs, sums, queries = (_by_lane(x, memory) for x in (out, lse, query))
    for keys, values, valid in _every_entry(memory, query.dtype):
        for span in _logit_spans(queries.shape[2], valid, memory):
            logits = _logits(queries[:, :, span] @ keys.transpose(-1, -2), scoring).masked_fill(~valid, -torch.inf)
            before = sums[:, :, span]
            total = torch.logaddexp(before, logits.logsumexp(-1))
            kept = _weights(before[..., None], total)
            outs[:, :, span] = outs[:, :, span] * kept + _weights(logits, total) @ values
            sums[:, :, span] = total
    return _by_query(outs, memory, out.shape), _by_query(sums, memory, lse.shape)


def _logits(scores: Tensor, scoring: Scoring) -> Tensor:
    logits = scores * scoring.scale
    return logits if scoring.softcap is None else torch.tanh(logits / scoring.softcap) * scoring.softcap


def _weights(logits: Tensor, lse: Tensor) -> Tensor:
    return (logits - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()


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
    if wide == torch.float32 and snapshot.metric == "dot":
        found = snapshot.attend_backward(
            query, hits, grad, delta=delta, lse=lse, scale=scoring.scale, softcap=scoring.softcap,
            threads=threads_for(home, query.numel() * k, query.numel() * k),
        )  # fmt: skip
        return torch.from_numpy(found).to(home, dtype)
    parts, distinct = [], torch.from_numpy(hits.distinct)  # [B, Hq, Q, k]
    for span in _spans(query.shape, k, snapshot):
        keys, values = (torch.from_numpy(x).to(wide) for x in snapshot.gather(_stretch(hits, span)))  # [.., q, k, dim]
        q, g = query[:, :, span, None], grad[:, :, span, None]  # [B, Hq, q, 1, dim]
        logits = (q @ keys.transpose(-1, -2)).squeeze(-2) * scoring.scale
        of_weights = (g @ values.transpose(-1, -2)).squeeze(-2)
        of_logits = _of_logits(logits, of_weights, distinct[:, :, span], scoring, delta[:, :, span], lse[:, :, span])
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
    if not len(snapshot) or query.numel() == 0:
        return torch.zeros_like(query)
    given = [_by_lane(x, snapshot) for x in (query, grad, delta, lse)]
    of_query = torch.zeros_like(given[0])
    for keys, values, valid in _every_entry(snapshot, query.dtype):
        for span in _logit_spans(of_query.shape[2], valid, snapshot):
            q, g, d, total = (x[:, :, span] for x in given)
            logits = q @ keys.transpose(-1, -2) * scoring.scale
            of_logits = _of_logits(logits, g @ values.transpose(-1, -2), valid, scoring, d, total)
            of_query[:, :, span] += of_logits @ keys
    return _by_query(of_query, snapshot, query.shape)


def _every_entry(snapshot: Bank | Snapshot, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Keys and values `[rows, heads, n, dim]` of a stretch of ids at a time, and which are there, `[rows, 1, 1, n]`.

    A sum over all entries needs no order of scores, which would cost more than the sum.
    """
    found = snapshot.find()
    ids = np.full((snapshot.rows, 1, 1, max(map(len, found))), -1, np.int64)
    for row, of_row in zip(ids, found, strict=True):
        row[..., : len(of_row)] = of_row
    bytes_per_id = 4 * snapshot.rows * snapshot.heads * (snapshot.key_dim + (snapshot.value_dim or 0))
    step = max(1, min(STRETCH, GATHER_BYTES // bytes_per_id))
    for start in range(0, ids.shape[-1], step):
        some = ids[..., start : start + step]
        each = np.broadcast_to(some, (snapshot.rows, snapshot.heads, *some.shape[2:]))
        stretch = Hits(np.broadcast_to(np.float32(0.0), each.shape), each, np.arange(snapshot.rows))
        keys, values = (torch.from_numpy(x).to(dtype).squeeze(2) for x in snapshot.gather(stretch))
        yield keys, values, torch.from_numpy(some >= 0)


def _logit_spans(n_queries: int, valid: Tensor, memory: Bank | Snapshot) -> Iterator[slice]:
    """Stretches of the queries of each lane whose logits fit together."""
    step = max(1, LOGIT_BYTES // (4 * valid.numel() * memory.heads))
    for start in range(0, n_queries, step):
        yield slice(start, start + step)


def _by_lane(x: Tensor, memory: Bank | Snapshot) -> Tensor:
    """`[B, Hq, q, ...]` as `[rows, heads, n, ...]`: the n queries that read one lane side by side.

    Of a memory of one row, all rows of the batch read the same lanes.
    """
    batch, heads, n, *rest = x.shape
    x = x.reshape(memory.rows, batch // memory.rows, memory.heads, heads // memory.heads, n, *rest)
    return x.transpose(1, 2).reshape(memory.rows, memory.heads, -1, *rest)


def _by_query(x: Tensor, memory: Bank | Snapshot, shape: tuple[int, ...]) -> Tensor:
    """Undo `_by_lane`, for what was `shape`."""
    batch, heads, n, *rest = shape
    x = x.reshape(memory.rows, memory.heads, batch // memory.rows, heads // memory.heads, n, *rest)
    return x.transpose(1, 2).reshape(shape)


def _stretch(hits: Hits, span: slice) -> Hits:
    """Cut the hits to a stretch of queries."""
    return replace(hits, scores=hits.scores[:, :, span], ids=hits.ids[:, :, span])
