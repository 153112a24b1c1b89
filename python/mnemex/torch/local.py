"""The local side: attention over the keys at hand, with its log-sum-exp, forward and backward.

Two implementations answer the same call. `flash` is the CPU kernel that `scaled_dot_product_attention` itself runs, so
its output has the same bits and the log-sum-exp costs nothing. `dense` writes the score matrix out and takes what the
kernel refuses: soft-capping, dropout, values of another width, learned masks, other devices. Neither repeats grouped
heads. The backward pass receives the output and log-sum-exp of the softmax the local keys took part in, which may be
larger than the local one; that is all an exact gradient needs (no gradient of the log-sum-exp).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLASH_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Mask(NamedTuple):
    """A mask in the form both implementations take.

    `additive` is `[1 or B, 1 or Hq, Q, K]` in the dtype of the queries; `dead` is `[1 or B, 1 or Hq, Q]`, True where a
    row may attend to nothing, or None where no row is dead.
    """

    additive: Tensor
    dead: Tensor | None


class Scoring(NamedTuple):
    """How scores become weights: the same on both sides, except `causal` and `dropout`, which are local."""

    scale: float
    softcap: float | None = None
    causal: bool = False
    dropout: float = 0.0


class Local(NamedTuple):
    """Output `[B, Hq, Q, Dv]`, log-sum-exp `[B, Hq, Q]`, and the scaled dropout mask, if there was dropout."""

    out: Tensor
    lse: Tensor
    kept: Tensor | None = None


def prepare(mask: Tensor | None, dtype: torch.dtype) -> Mask | None:
    """Turn a boolean (True: attend) or additive mask of 2 to 4 dimensions into a `Mask`."""
    if mask is None:
        return None
    mask = mask[(None,) * (4 - mask.ndim)]
    if mask.dtype == torch.bool:
        dead = ~mask.any(-1)
        additive = torch.zeros((), dtype=dtype, device=mask.device).expand(mask.shape).masked_fill(~mask, -torch.inf)
    else:
        dead = (mask.detach() == -torch.inf).all(-1)
        additive = mask.to(dtype)
    return Mask(additive, dead if bool(dead.any()) else None)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, scoring: Scoring) -> Local:
    """Attend to the local keys; a row without any gives zeros and a log-sum-exp of -inf."""
    batch, heads, n_queries, _ = query.shape
    if 0 in (batch, n_queries, key.shape[2]):
        # The flash kernel divides by these sizes.
        out = query.new_zeros(batch, heads, n_queries, value.shape[-1])
        return Local(out, query.new_full((batch, heads, n_queries), -torch.inf, dtype=_accumulator(query.dtype)))
    if _takes_flash(query, key, value, mask, scoring):
        query, key, value = map(_rows_in_one_piece, (query, key, value))
        additive = None if mask is None else mask.additive
        out, lse = _flash(query, key, value, 0.0, scoring.causal, attn_mask=additive, scale=scoring.scale)
        local = Local(out, lse)
    else:
        local = _dense(query, key, value, mask, scoring)
    if mask is not None and mask.dead is not None:
        dead = mask.dead
        local = local._replace(
            out=local.out.masked_fill(dead[..., None], 0.0), lse=local.lse.masked_fill(dead, -torch.inf)
        )
    return local


class LocalGradients(NamedTuple):
    """Gradients of query, key, value, and of the scores `[B, Hq, Q, K]` where `dense` made them."""

    query: Tensor
    key: Tensor
    value: Tensor
    scores: Tensor | None = None


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None,
    scoring: Scoring,
    *,
    out: Tensor,
    lse: Tensor,
    kept: Tensor | None,
) -> LocalGradients:
    """Gradients of a softmax of which these keys are a part.

    `grad`, `out` and `lse` belong to the whole softmax: with p = exp(score - lse), the gradient of a score is
    p (grad . value - grad . out).
    """
    if 0 in (query.shape[0], query.shape[2], key.shape[2]):
        return LocalGradients(torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value))
    # Where no key at all took part, exp(-inf - 0) is the zero that is wanted.
    lse = lse.masked_fill(lse == -torch.inf, 0.0)
    if _takes_flash(query, key, value, mask, scoring):
        grad, query, key, value, out = map(_rows_in_one_piece, (grad, query, key, value, out))
        additive = None if mask is None else mask.additive
        return LocalGradients(
            *_flash_backward(
                grad, query, key, value, out, lse, 0.0, scoring.causal, attn_mask=additive, scale=scoring.scale
            )
        )
    return _dense_backward(grad, query, key, value, mask, scoring, out, lse, kept)


def _takes_flash(query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, scoring: Scoring) -> bool:
    return (
        scoring.softcap is None
        and scoring.dropout == 0.0
        and key.shape[-1] == value.shape[-1]
        and query.device.type == "cpu"
        and query.dtype in FLASH_DTYPES
        and not (mask is not None and mask.additive.requires_grad)
    )


def _rows_in_one_piece(x: Tensor) -> Tensor:
    """Copy where the last axis is not contiguous: the flash kernel takes its stride for 1, and does not look."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """`[B, Hq, Q, D]` as `[B, Hkv, group * Q, D]`, so that one product serves every query head of a group."""
    batch, heads, length, dim = x.shape
    return x.reshape(batch, kv_heads, heads // kv_heads * length, dim)


def _scores(query: Tensor, key: Tensor, mask: Mask | None, scoring: Scoring) -> tuple[Tensor, Tensor | None]:
    """Masked logits `[B, Hq, Q, K]` and, with soft-capping, the derivative of the cap."""
    batch, heads, n_queries, _ = query.shape
    kv_heads, n_keys = key.shape[1:3]
    raw = _grouped(query, kv_heads) @ key.transpose(-1, -2)  # [B, Hkv, group * Q, K]
    scores = raw.reshape(batch, heads, n_queries, n_keys) * scoring.scale
    slope = None
    if scoring.softcap is not None:
        bent = torch.tanh(scores / scoring.softcap)
        scores, slope = bent * scoring.softcap, 1.0 - bent * bent
    if mask is not None:
        scores = scores + mask.additive.to(scores.dtype)
    if scoring.causal:
        future = torch.ones(n_queries, n_keys, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores, slope


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, scoring: Scoring) -> Local:
    wide = _accumulator(query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        scores, _ = _scores(query.to(wide), key.to(wide), mask, scoring)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
        kept = None
        if scoring.dropout > 0.0:
            kept = torch.nn.functional.dropout(torch.ones_like(weights), scoring.dropout)
            weights = weights * kept
        out = (_grouped(weights, key.shape[1]) @ value.to(wide)).reshape(*query.shape[:3], value.shape[-1])
    return Local(out.to(query.dtype), lse, kept)


def _dense_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None,
    scoring: Scoring,
    out: Tensor,
    lse: Tensor,
    kept: Tensor | None,
) -> LocalGradients:
    wide = _accumulator(query.dtype)
    kv_heads = key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        grad, out = grad.to(wide), out.to(wide)
        scores, slope = _scores(query.to(wide), key.to(wide), mask, scoring)
        weights = (scores - lse[..., None]).exp()
        of_weights = (_grouped(grad, kv_heads) @ value.to(wide).transpose(-1, -2)).reshape(weights.shape)
        if kept is not None:
            of_weights = of_weights * kept
        of_scores = weights * (of_weights - (grad * out).sum(-1, keepdim=True))
        of_logits = of_scores * scoring.scale if slope is None else of_scores * slope * scoring.scale
        grouped = _grouped(of_logits, kv_heads)
        of_query = (grouped @ key.to(wide)).reshape(query.shape)
        of_key = grouped.transpose(-1, -2) @ _grouped(query.to(wide), kv_heads)
        dropped = weights if kept is None else weights * kept
        of_value = _grouped(dropped, kv_heads).transpose(-1, -2) @ _grouped(grad, kv_heads)
    return LocalGradients(of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), of_scores)
