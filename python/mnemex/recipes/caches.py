"""Published caches of bounded size, as parts: what is merged or let go so that a long stream fits."""

from __future__ import annotations

import mnemex as mx
from mnemex.recipes.parts import Parts


def pyramid_kv(n_layers: int, *, mean: int = 256, window: int = 64, pool: int = 5) -> Parts:
    """Give the parts of Cai et al., "PyramidKV" (2024, arXiv 2406.02069). Nothing is trained.

    Published: in every head the entries stay that the last 64 queries attended to most, pooled over five positions,
    beside the last 64 tokens; how many falls linearly with depth, under one budget for all layers.
    Own reading: the text streams, and queries tell their attention as they come, where the published program scores a
    prompt once, at its end; a version of the memory, one forward pass, stands for a query; an entry is worth the
    largest mass around it, where theirs is the mean; what was let go is gone for all queries to come.
    So the newest `window` entries of the memory stand just behind the `window` tokens of the cache, which come on top.
    Outside: the number for a model and a task.

    Parameters
    ----------
    n_layers
        Layers of the memory.
    mean
        Entries per head, on average over the layers.
    window, pool
        Newest entries that stay, and versions whose attention counts; positions that count together.
    """
    room = mx.pyramid(n_layers, mean, window=window)
    evict = mx.AttentionMass(window=window, pool=pool, recent=window)
    return Parts(
        bank={"capacity": room, "evict": evict},
        attach={"top_k": max(room), "write": "evicted"},
        cache={"window": window, "sinks": 0},
    )


def subgen(*, delta: float, reservoir: int = 4, window: int = 512) -> Parts:
    """Give the parts of Zandieh et al., "SubGen" (2024, arXiv 2402.06082). Nothing is trained.

    Published: keys within delta of a representative make a cluster, of which an even sample is kept; the sum under the
    softmax counts each sample for as many tokens as it stands for; a recent window is read exactly. There is no public
    program.
    Own reading: see `mnemex.Cluster`; values are summed over the same sample, and numbers are the caller's.
    Outside: the read. `mnemex.hf.attach` gives every entry weight 1: ask the bank of a layer, by
    `attend(q, None, bias="log_weight")`, and join the window by `mnemex.merge`.

    Parameters
    ----------
    delta
        Largest distance of a member's key from its representative's.
    reservoir
        Members of a cluster that are kept.
    window
        Tokens that stay local.
    """
    return Parts(
        bank={"write": mx.Cluster(delta, reservoir=reservoir)}, cache={"window": window, "sinks": 0}
    )  # fmt: skip


def moviechat(*, short: int = 18, left: int = 2, capacity: int = 256) -> Parts:
    """Give the parts of Song et al., "MovieChat" (2023, arXiv 2307.16449). Nothing is trained.

    Published: of every 18 frames the most similar neighbours are merged, by plain means, until two are left, which go
    to a long memory of 256; where that is full, neighbours are merged in it too. All of it is read.
    Own reading: similarity is the dot product of two keys, where a frame there is a matrix of tokens; in the long
    memory the most similar neighbours merge too, where the published program takes the least similar by mistake.
    Outside: the encoder of frames, what is made of them by the language model, and positions of frames. Reading is
    `gather` of all ids.

    Parameters
    ----------
    short, left
        Frames that are merged together, and what is left of them.
    capacity
        Frames that are kept.
    """
    merge = mx.MergeAdjacent(left, segment=short, similarity="dot", merge="midpoint", beyond="merge")
    return Parts(bank={"write": merge, "capacity": capacity})
