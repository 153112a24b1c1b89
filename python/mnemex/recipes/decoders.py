"""Published memories of decoders, as parts: what the bank keeps, how attention reads it, what the cache keeps local."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import mnemex as mx
from mnemex.errors import ArgumentError
from mnemex.recipes.parts import Parts

if TYPE_CHECKING:
    from mnemex.parts import Reader


def memorizing_transformer(heads: int, layer: int, *, capacity: int = 8192, k: int = 32) -> Parts:
    """Give the parts of Wu et al., "Memorizing Transformers" (2022, arXiv 2203.08913), to be trained.

    Published: one layer reads and writes, near the top (the ninth of twelve); every head finds k entries of its own by
    dot products; two softmaxes, mixed by the sigmoid of a number per head that starts at 0; the oldest entries go; a
    segment reads before it is written; entries are constants.
    Own reading: the search is exact, where theirs finds about nine in ten; entries of a rotary model are kept plain and
    stand at no distance, since that layer has no positions there.
    Outside: the training, at whose end of a segment `commit()` is called, and `memory.reset(rows)` at that of a
    document; keys and queries normalised with a learned scale; the cache of the window before, on all layers.

    Parameters
    ----------
    heads
        Query heads of the model.
    layer
        That has the memory.
    capacity, k
        Entries per head, and those each query reads.
    """
    return Parts(
        bank={"layers": [layer], "keys": "plain", "capacity": capacity, "evict": mx.Fifo()},
        attach={"top_k": k, "merge": mx.torch.Gate(heads, init=0.0), "positions": "none", "write": "all"},
    )


def camelot(
    *, capacity: int = 10_000, threshold: float = 0.93, positions: Literal["start", "none"] | int = "start"
) -> Parts:
    """Give the parts of He et al., "CAMELoT" (2024, arXiv 2402.13449). Nothing is trained.

    Published: on all layers, in every head, each token of a segment finds its nearest slot; the pairs are prepended and
    attended to in one softmax, causally; then a token that is near its slot joins the slot's mean, and another takes
    the place of the slot whose last update is oldest. There is no public program.
    Own reading: near is a cosine of `threshold` between keys, and so is nearest; both are of keys before their rotary
    positions, in each key/value head; slots stand at position 0 of the segment; the tokens of a segment that join one
    slot do so at once; the numbers of the defaults.
    Outside: how long a segment is. `a.ingest(text, chunk=...)` reads, attends and writes segment by segment; so does
    `model(segment, use_cache=False)` with a `commit()` after it.

    Parameters
    ----------
    capacity
        Slots per key/value head.
    threshold
        Cosine from which a token joins its nearest slot.
    positions
        Where slots stand, as `mnemex.hf.attach` takes it.
    """
    return Parts(
        bank={
            "keys": "plain", "metric": "cos", "capacity": capacity, "write": mx.Consolidate(threshold=threshold),
            "evict": mx.OldestAge(),
        },
        attach={"top_k": mx.Shared(1), "positions": positions, "write": "all"},
    )  # fmt: skip


def extended_mind(*, k: int = 10, threshold: float | None = 0.25) -> Parts:
    """Give the parts of Klett and Ahle, "Extended Mind Transformers" (2024, arXiv 2406.02332). Nothing is trained.

    Published: on all layers, every head of every query finds k entries by cosine, weighs them by dot products in one
    softmax with the local keys, and sees no others'; entries carry no rotation while queries keep theirs; what is less
    alike than the threshold is left out (the released configuration has that off: `threshold=None`). What was found can
    be cited.
    Own reading: where nothing is as alike as the threshold, local attention alone is left.
    Outside: which tokens of the memory text are left out, special ones as published, by `attention_mask` of
    `a.ingest(text, mask, chunk=512)`; there, each chunk is run with a longer window, and here with what was read of
    the text before. `a.citations()` lists where an answer was read.

    Parameters
    ----------
    k
        Entries each query reads per head.
    threshold
        Least cosine between query and key; None: no threshold.
    """
    reader: Reader = mx.TopK(k) if threshold is None else mx.Threshold(threshold, k)
    return Parts(bank={"keys": "plain", "metric": "cos"}, attach={"top_k": reader, "positions": "start", "trace": True})


def attendre(
    *, policy: Literal["lra", "lfa"] = "lra", capacity: int = 4096, k: int = 32, window: int = 512
) -> Parts:  # fmt: skip
    """Give the parts of Yang and Hua, "Attendre" (2024, arXiv 2401.04881), without its delay of queries.

    Published: a memory of keys and values that lets go what was attended to least recently or least frequently, of
    which a query reads the best k. There is no public program.
    Own reading: "least recently" goes by the last query that had an entry among its k best, "least frequently" by the
    sum of the softmax weights that it got; each head keeps its own.
    Outside: the second memory, in which queries wait until later keys are there too. Answers that come late do not fit
    a decoder; `bank.attend` of queries that a caller kept does it. Models keep their positions here.

    Parameters
    ----------
    policy
        "lra": least recently attended goes first. "lfa": least frequently attended.
    capacity, k
        Entries per head, and those each query reads.
    window
        Tokens that stay local.
    """
    evicts = {"lra": mx.Lru(), "lfa": mx.AttentionMass()}
    if policy not in evicts:
        raise ArgumentError(f"policy={policy!r}: expected 'lra' or 'lfa'")
    return Parts(
        bank={"capacity": capacity, "evict": evicts[policy]},
        attach={"top_k": k, "write": "evicted"},
        cache={"window": window, "sinks": 0},
    )


def sirllm(*, capacity: int = 1020, sinks: int = 4, recent: int = 0, decay: float = 1.0) -> Parts:
    """Give the parts of Yao et al., "SirLLM" (2024, arXiv 2405.12528). Nothing is trained.

    Published: of what was read, the first four tokens stay and those that surprised the model most, -log p(token |
    past); surprises fade by `decay` from round to round (1, 0.9 or 0.7 there); attention reads all that stays.
    Own reading: a round is a commit, so commit once a round; the newest tokens stay while `recent` says so.
    Outside: surprise, which the model's logits tell after a token has been read: stage keys and values of the cache
    with `columns={"surprise": ...}` (the first token's is the largest). Positions start again within the cache there;
    here they stay true.

    Parameters
    ----------
    capacity
        Tokens that stay.
    sinks, recent
        First and newest tokens among them that always do.
    decay
        What is left of a surprise after each commit.
    """
    return Parts(
        bank={
            "capacity": capacity, "columns": {"surprise": "float32"},
            "evict": mx.MinScore(column="surprise", decay=decay, sinks=sinks, recent=recent),
        },
        attach={"top_k": None},
    )  # fmt: skip
