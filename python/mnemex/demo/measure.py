"""What is measured: the loss of every token of a text streamed through a cache, the time that took, and what was held.

A text is fed in chunks, as a server would prefill it. A chunk attends to all of itself, so with a window of W and
chunks of C a token sees at least W and at most W + C - 1 tokens locally, in the rows with and without memory alike.
Only the model's forward passes are timed, writes to memory included; the loss is taken outside the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import Cache, PreTrainedModel

    from mnemex.demo.reading import Text

Advance = Callable[[int], None]
"""Told the number of tokens just read."""

LARGEST_CHUNK = 128
CHUNKS_PER_WINDOW = 4


class Stream(NamedTuple):
    """A text that went through a cache.

    Attributes
    ----------
    nats
        Loss of each token given those before it, float64 `[n]`; NaN for the first, which nothing predicts.
    seconds
        Time in the model, all forward passes together.
    """

    nats: NDArray[np.float64]
    seconds: float


class Row(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    name
        What the model attends to.
    bits_per_byte
        Mean over the measured part of the text.
    local_bytes
        Keys and values in the model's own cache at the end.
    memory_bytes
        What the memory holds at the end; 0 without one.
    ms_per_token
        Time in the model per token.
    recovered
        Share of what the window loses that is won back; NaN where that has no meaning.
    k
        Entries read per query and head; None for every entry, 0 without a memory.
    """

    name: str
    bits_per_byte: float
    local_bytes: int
    memory_bytes: int
    ms_per_token: float
    recovered: float = math.nan
    k: int | None = 0


def chunk_for(window: int) -> int:
    """Return the tokens to feed at a time: a quarter of the window, 1 to 128."""
    return max(1, min(LARGEST_CHUNK, window // CHUNKS_PER_WINDOW))


@torch.inference_mode()
def stream(
    model: PreTrainedModel,
    ids: NDArray[np.int64],
    *,
    cache: Cache,
    chunk: int,
    advance: Advance | None = None,
    after: Advance | None = None,
) -> Stream:
    """Feed a text through a model and its cache.

    Parameters
    ----------
    model, ids, cache
        A causal language model, tokens `[n]`, and an empty cache.
    chunk
        Tokens per forward pass.
    advance
        Told how many tokens were read, once their loss is known.
    after
        Told the same right after each forward pass, outside the clock.
    """
    tokens = torch.from_numpy(ids)[None]
    nats, seconds = np.full(len(ids), np.nan), 0.0
    for start in range(0, len(ids), chunk):
        stop = min(start + chunk, len(ids))
        begun = time.perf_counter()
        logits = model(tokens[:, start:stop], past_key_values=cache, use_cache=True).logits[0]
        seconds += time.perf_counter() - begun
        if after is not None:
            after(stop - start)
        predicted = tokens[0, start + 1 : stop + 1]
        if len(predicted):
            losses = functional.cross_entropy(logits[: len(predicted)].float(), predicted, reduction="none")
            nats[start + 1 : stop + 1] = losses.double().numpy()
        if advance is not None:
            advance(stop - start)
    return Stream(nats, seconds)


def bits_per_byte(nats: NDArray[np.float64], text: Text, *, skip: int) -> float:
    """Return the loss of the tokens from `skip` on, in bits per byte of the file they stand for."""
    return float(nats[skip:].sum() / math.log(2) / text.n_bytes[skip:].sum())


def held_bytes(cache: Cache) -> int:
    """Return the bytes of the keys and values in a cache."""
    pairs = ((getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers)
    tensors: Iterable[torch.Tensor] = (x for pair in pairs for x in pair if x is not None)
    return sum(x.numel() * x.element_size() for x in tensors)


def with_recovered(rows: list[Row], *, window: Row, full: Row) -> list[Row]:
    """Fill in the share of the loss each row wins back, between `window` (0) and `full` attention (1).

    It has no meaning where the window loses nothing, and rows worse than the window have none.
    """
    lost = window.bits_per_byte - full.bits_per_byte
    if lost <= 0:
        return rows
    shares = ((window.bits_per_byte - row.bits_per_byte) / lost for row in rows)
    return [row._replace(recovered=share if share >= 0 else math.nan) for row, share in zip(rows, shares, strict=True)]
