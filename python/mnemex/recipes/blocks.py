"""Published memories that are read in whole blocks of tokens, as parts."""

from __future__ import annotations

import mnemex as mx
from mnemex.errors import ArgumentError
from mnemex.recipes.parts import Parts


def infllm(*, n: int = 16, size: int = 128, window: int = 4096, sinks: int = 128) -> Parts:
    """Give the parts of Xiao et al., "InfLLM" (2024, arXiv 2402.04617). Nothing is trained.

    Published: on all layers, what leaves the window goes to blocks of 128 tokens, which never end; the queries of a
    block of tokens choose 16 blocks together, once, and read them whole in one softmax with the first tokens and the
    window; all that is far away stands at the distance of the window, so no position is new to the model.
    Own reading: a block stands for itself by the mean of all its keys, where theirs is the mean of the four that the
    window paid most; each key/value head chooses for itself, where theirs choose as one; what is not a whole block yet
    can be chosen too.
    Outside: how many tokens choose together, which is the chunk that is fed (512 there). With representatives of your
    own choice, `bank={**parts.bank, "write": mx.Pages(size=128, representatives=4)}`, and the column that it asks for.

    Parameters
    ----------
    n, size
        Blocks that are read, and tokens of each.
    window, sinks
        Last and first tokens that stay local.
    """
    return Parts(
        bank={"keys": "plain", "write": mx.Pages(size=size)},
        attach={"top_k": mx.Blocks(n, shared=True), "positions": "fixed", "write": "evicted"},
        cache={"window": window, "sinks": sinks},
    )


def em_llm(*, n: int = 16, surprise: float = 1.0, window: int = 4096, shortest: int = 8, longest: int = 128) -> Parts:
    """Give the parts of Fountas et al., "EM-LLM" (2024, arXiv 2407.09450). Nothing is trained.

    Published: InfLLM, with events for blocks: one begins at a token whose surprise, -log p(token | past), is above mean
    and deviation of those of the window before, and has 8 to 128 tokens; the events next to a chosen one are read too.
    Own reading: n events and all their neighbours are read, where a budget of 2,048 tokens is filled, 30 % of it with
    neighbours; representatives as in `infllm`.
    Outside: surprise, which the logits tell after a token has been read: stage keys and values of the cache with
    `columns={"surprise": ...}`. And the refinement of borders by modularity: move them, and write with
    `mx.Pages(boundaries=True)`.

    Parameters
    ----------
    n
        Events that are read, beside their neighbours.
    surprise
        Deviations above the mean at which an event begins.
    window
        Tokens whose surprise is the measure.
    shortest, longest
        Tokens of an event.
    """
    pages = mx.Pages(surprise=surprise, window=window, shortest=shortest, longest=longest)
    return Parts(
        bank={"keys": "plain", "write": pages},
        attach={"top_k": mx.Blocks(n, contiguous=1, shared=True), "positions": "fixed", "write": "off"},
    )


def longmem(heads: int, layer: int, *, capacity: int = 65_536, k: int = 64, size: int = 4) -> Parts:
    """Give the parts of Wang et al., "LongMem" (2023, arXiv 2306.07174), to be trained.

    Published: keys and values of one frozen layer (the eighteenth of 24) in chunks of four tokens, found by their mean
    key, per token and head, sixteen chunks for 64 tokens; two softmaxes, mixed by the sigmoid of a number per head; the
    oldest go when 65,536 tokens are there.
    Own reading: the search is exact; entries keep their positions where the model rotates keys (theirs has none in
    the memory); the oldest go token by token, so the oldest chunk may be in part gone.
    Outside: the side network that reads them, half as deep as the frozen model, and its training. Here the layer that
    wrote them reads them.

    Parameters
    ----------
    heads
        Query heads of the model.
    layer
        That has the memory.
    capacity, k
        Entries per head, and those each query reads, a multiple of `size`.
    size
        Tokens of a chunk.
    """
    if size < 1 or k < size or k % size:
        raise ArgumentError(f"k={k!r} must be a multiple of size={size!r}: chunks are read whole")
    return Parts(
        bank={"layers": [layer], "capacity": capacity, "write": mx.Pages(size=size), "evict": mx.Fifo()},
        attach={"top_k": mx.Blocks(k // size), "merge": mx.torch.Gate(heads, init=0.0), "write": "all"},
    )
