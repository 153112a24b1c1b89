"""Neurocache: hidden states, compressed and kept, that every token looks up once and attends to beside self attention.

The store owns the states and finds them; what is trained is here: the compressor, and an attention block for each layer
that reads. Nothing learns through the search or through what is stored. The compressor learns where the raw states are
kept too, and what was found is compressed anew on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mnemex import Bank, Window
from mnemex.errors import ArgumentError, DtypeError, ShapeError
from mnemex.torch import checks
from mnemex.torch.stored import at_most_float32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mnemex import Hits
    from mnemex._arrays import IntsLike
    from mnemex.evict import Evict


class Found(NamedTuple):
    """What the tokens of a segment looked up, P = k (1 + before + after) places each.

    Attributes
    ----------
    hits
        Of the search, `[B, 1, T, P]`.
    there
        Which places hold a state, `[B, T, P]`.
    states
        Compressed states `[B, T, P, dim / compression]`, zeros elsewhere.
    raw
        The hidden states that they were, `[B, T, P, dim]`; None where none are kept.
    """

    hits: Hits
    there: Tensor
    states: Tensor
    raw: Tensor | None


class CacheAttention(nn.Module):
    """Attention of hidden states to what they looked up, with projections of its own and no positions."""

    def __init__(self, dim: int, state_dim: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key = nn.Linear(state_dim, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(state_dim, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, hidden: Tensor, states: Tensor, there: Tensor, context: int) -> Tensor:
        """Attend from `[B, T, dim]` to `[B, T, P, state_dim]`, those of the `context - 1` tokens before included."""
        batch, n, places = there.shape
        query = self.query(hidden).view(batch, n, self.kv_heads, self.heads // self.kv_heads, self.head_dim)
        keys, values = (x(states).view(batch, n, places, self.kv_heads, self.head_dim) for x in (self.key, self.value))
        reach = range(min(context, n))
        # Places of the token `back` before: its own keys are taken once, whoever reads them.
        logits = torch.cat([_earlier(query, keys, there, back) for back in reach], -1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.head_dim**-0.5
        largest = logits.amax(-1, keepdim=True)
        # Where nothing was found, all weights are 0 and not NaN.
        weights = (logits - largest.masked_fill(largest == -torch.inf, 0.0)).exp()
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        weights = weights.to(values.dtype)
        read = torch.zeros_like(query)
        for back, of_token in zip(reach, weights.split(places, -1), strict=True):
            moved = torch.einsum("bthgp,btphd->bthgd", of_token[:, back:], values[:, : n - back])
            read = read + nn.functional.pad(moved, (0, 0, 0, 0, 0, 0, back, 0))
        return self.out(read.flatten(2))


def _earlier(query: Tensor, keys: Tensor, there: Tensor, back: int) -> Tensor:
    """Score the places of the token `back` before each, `[B, T, kv_heads, group, P]`; -inf where there is nothing."""
    n = query.shape[1] - back
    logits = torch.einsum("bthgd,btphd->bthgp", query[:, back:], keys[:, :n])
    logits = logits.masked_fill(~there[:, :n, None, None], -torch.inf)
    return nn.functional.pad(logits, (0, 0, 0, 0, 0, 0, back, 0), value=-torch.inf)


class Neurocache(nn.Module):
    """A cache of compressed hidden states for a decoder, read by attention that is trained.

    Safaya and Yuret, "Neurocache: Efficient Vector Retrieval for Long-range Language Modeling" (2024, arXiv
    2407.02486). For hidden states h of a segment, z = LayerNorm(W h) is what each token searches by, once for all
    heads, and what is stored of it when the segment has been read. The states that were found, with their neighbours in
    the order of writing and those that the tokens just before found, are attended to by
    `softmax(q k / sqrt(head_dim)) v` without positions, and the result is added to what self attention gives. A state
    that was found twice counts twice.

    Parameters
    ----------
    dim
        Width of the model.
    heads, kv_heads, head_dim
        Of the attention to what was found. By default as many key/value heads as heads, of `dim // heads` numbers.
    layers
        Layers that attend to what one search found, each with a block of its own.
    compression
        f: states have `dim // compression` numbers. 1: no projection, the normalisation alone.
    k
        States each token finds; `window` adds to them.
    window
        Neighbours (before, after) of each: states written just before and just after it. The published width 2 is the
        successor, (0, 1).
    context
        Tokens whose finds each token reads, itself included; those before the segment are not among them.
    capacity
        States per row at most.
    metric
        "l2", "dot" or "cos": by which states are found.
    evict
        "fifo", "lru" (what is found, with its neighbours, is used), or another policy of `mnemex.evict`.
    codec
        How states are stored: "f32", "bf16" or "f16".
    raw
        Keep the hidden states too, and compress those that are found anew where gradients are on: so the compressor
        learns. Without, it gets no gradient. Takes 1 + `compression` times the memory.

    Attributes
    ----------
    bank
        The states, `mnemex.Bank` of one head. It is no parameter and not in `state_dict`: `bank.save` keeps it.

    Raises
    ------
    ArgumentError, DtypeError
        Numbers that do not fit each other, or are too small.

    Notes
    -----
    The search is exact, where the published program takes the best of each of 512 or more stretches. A token is left
    unwritten where `mask` is False, or where a number of its state is not finite; the bank lives on the CPU. Searches
    by "dot" are several times as fast as those by "l2", and find the same while all states are of one length.

    Examples
    --------
    >>> cache = mx.torch.Neurocache(512, heads=8)
    >>> for segment in segments:  # hidden states [B, T, 512] that a layer's self attention takes
    ...     out = attention(segment) + cache(segment)
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        layers: int = 1,
        compression: int = 4,
        k: int = 16,
        window: Sequence[int] = (0, 1),
        context: int = 2,
        capacity: int = 16_384,
        metric: str = "l2",
        evict: str | Evict = "fifo",
        codec: str = "f32",
        raw: bool = False,
    ) -> None:
        super().__init__()
        self.dim, heads = checks.count("dim", dim), checks.count("heads", heads)
        kv_heads = heads if kv_heads is None else checks.count("kv_heads", kv_heads)
        if heads % kv_heads:
            raise ArgumentError(f"heads={heads}, kv_heads={kv_heads}: expected a multiple")
        if head_dim is None and dim % heads:
            raise ArgumentError(f"dim={dim} is no multiple of heads={heads}: give head_dim")
        head_dim = dim // heads if head_dim is None else checks.count("head_dim", head_dim)
        compression = checks.count("compression", compression)
        if dim % compression:
            raise ArgumentError(f"dim={dim} is no multiple of compression={compression}")
        if codec not in ("f32", "bf16", "f16"):
            raise ArgumentError(f"codec={codec!r}: expected 'f32', 'bf16' or 'f16'")
        try:
            before, after = window
        except (TypeError, ValueError):
            raise ArgumentError(f"window={window!r}: expected two numbers, of neighbours before and after") from None
        self.reader = Window(k, before, after)
        self.context = checks.count("context", context)
        self.raw = checks.flag("raw", raw)
        self.state_dim = dim // compression
        self.project = nn.Identity() if compression == 1 else nn.Linear(dim, self.state_dim, bias=False)
        self.norm = nn.LayerNorm(self.state_dim)
        self.blocks = nn.ModuleList(
            CacheAttention(dim, self.state_dim, heads, kv_heads, head_dim)
            for _ in range(checks.count("layers", layers))
        )
        self.bank = Bank(
            key_dim=self.state_dim, value_dim=dim if raw else "key", capacity=checks.count("capacity", capacity),
            metric=metric, evict=evict, key_codec=codec, value_codec=codec, nonfinite="skip",
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Show how it reads."""
        return f"dim={self.dim}, state_dim={self.state_dim}, read={self.reader}, context={self.context}"

    def compress(self, hidden: Tensor) -> Tensor:
        """Give the state of each token, `[..., dim / compression]`."""
        state: Tensor = self.norm(self.project(hidden))
        return state

    @torch.no_grad()
    def look_up(self, hidden: Tensor) -> Found | None:
        """Find the states that are nearest to each token of `[B, T, dim]`; None where the cache is empty."""
        self._check(hidden)
        if not len(self.bank) or not hidden.numel():
            return None
        self._take_rows(hidden.shape[0])
        queries = at_most_float32(self.compress(hidden)).cpu()
        hits = self.bank.search(queries[:, None], self.reader, nonfinite="keep")
        states, values = self.bank.gather(hits)
        there = torch.from_numpy(hits.valid[:, 0]).to(hidden.device)
        raw = torch.from_numpy(values)[:, 0].to(hidden) if self.raw else None
        return Found(hits, there, torch.from_numpy(states)[:, 0].to(hidden), raw)

    def attend(self, hidden: Tensor, found: Found | None, *, layer: int = 0) -> Tensor:
        """Attend from `[B, T, dim]` to what was found, in one of the blocks; zeros where nothing was."""
        block = self.blocks[layer]
        if found is None:
            # Distributed training wants every parameter in the graph, with nothing to learn in it too.
            unused = sum((p.sum() for p in block.parameters()), hidden.new_zeros(()))
            return torch.zeros_like(hidden) + 0.0 * unused.to(hidden.dtype)
        states = found.states
        if found.raw is not None and torch.is_grad_enabled():
            states = self.compress(found.raw).to(states.dtype)
        read: Tensor = block(hidden, states, found.there, self.context)
        return read

    @torch.no_grad()
    def write(self, hidden: Tensor, mask: Tensor | None = None, *, found: Found | None = None) -> IntsLike:
        """Store the states of `[B, T, dim]` and commit; the ids `[B, T]`, -1 where nothing was stored.

        Parameters
        ----------
        hidden
            Hidden states.
        mask
            False for tokens that are not to be stored, `[B, T]`; None: all are.
        found
            What the segment read, for evict policies that go by use.
        """
        self._check(hidden)
        if not hidden.numel():
            return np.zeros(hidden.shape[:2], np.int64)
        if mask is not None and tuple(mask.shape) != tuple(hidden.shape[:2]):
            raise ShapeError(f"mask is {list(mask.shape)}: expected {list(hidden.shape[:2])}, as the tokens")
        self._take_rows(hidden.shape[0])
        states, raw = (at_most_float32(x).cpu()[:, None] for x in (self.compress(hidden), hidden))
        chosen = None if mask is None else mask.cpu().numpy().astype(np.bool_)
        try:
            if found is not None and self.bank.wants_use:
                self.bank.touch(found.hits)
            ids = self.bank.stage(states, raw if self.raw else None, mask=chosen)
        except BaseException:
            self.bank.rollback()
            raise
        self.bank.commit()
        return ids

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, start: Tensor | Sequence[bool] | None = None
    ) -> Tensor:
        """Read for the tokens of a segment, then store them.

        Parameters
        ----------
        hidden
            What the layer's self attention takes, `[B, T, dim]`.
        mask
            False for pads, which are not stored, `[B, T]`.
        start
            Rows that begin a new sequence with this segment, booleans `[B]`: they forget first. None: no row does.

        Returns
        -------
        Tensor
            `[B, T, dim]`, to be added to what self attention gives; zeros where a row has nothing stored.
        """
        if start is not None and len(self.bank):
            rows = torch.as_tensor(start).cpu().numpy()
            if rows.dtype != np.bool_ or rows.shape != hidden.shape[:1]:
                raise ShapeError(f"start is {rows.dtype} {list(rows.shape)}: expected a boolean for each row")
            self.reset(None if rows.all() else rows.nonzero()[0])
        found = self.look_up(hidden)
        read = self.attend(hidden, found)
        self.write(hidden, mask, found=found)
        return read

    def reset(self, rows: IntsLike | None = None) -> None:
        """Forget what these rows hold; None: everything, after which a batch may have other rows."""
        self.bank.reset(rows)

    def _check(self, hidden: Tensor) -> None:
        checks.tensor("hidden", hidden, "[B, T, dim]")
        if hidden.ndim != 3 or hidden.shape[-1] != self.dim:
            raise ShapeError(f"hidden is {list(hidden.shape)}: expected [batch, tokens, {self.dim}]")
        if not hidden.is_floating_point():
            raise DtypeError(f"hidden is {hidden.dtype}: expected a floating-point dtype")

    def _take_rows(self, batch: int) -> None:
        if self.bank.rows == batch:
            return
        if len(self.bank):
            raise ShapeError(f"hidden has {batch} rows, the cache holds states of {self.bank.rows}: reset() first")
        self.bank.reorder(np.zeros(batch, np.int64))
