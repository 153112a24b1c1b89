"""Whether the lower layers of a small cache should hold more than the upper ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mnemex as mx
from benches.evidence.claim import Claim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.evidence.claim import Tried
    from benches.evidence.subject import Subject

WINDOW = 64
SHARE = 0.12


def _try(subject: Subject) -> Sequence[Tried]:
    n = subject.model.config.num_hidden_layers
    mean = max(WINDOW + 24, int(SHARE * subject.entries_beyond(WINDOW)))
    mass = mx.AttentionMass(window=WINDOW, pool=5, recent=WINDOW)
    ways = {
        "fifo, alike": (mean, mx.Fifo()),
        "attention mass, alike": (mean, mass),
        "attention mass, pyramid": (mx.pyramid(n, mean, window=WINDOW), mass),
    }
    tried = [subject.without_memory("", WINDOW)]
    for name, (capacity, policy) in ways.items():
        memory = {"capacity": capacity, "evict": policy}
        tried.append(subject.with_memory("", name, WINDOW, memory=memory, attach={"top_k": 2 * mean}))
    tried.append(subject.with_memory("", "the whole cache", WINDOW, attach={"top_k": None}))
    return tried


CLAIM = Claim(
    name="A pyramid of small caches",
    source="PyramidKV, Cai et al. 2024, arXiv 2406.02069",
    says="With room for 12 % of the cache, attention mass keeps more than the newest entries do, and lower layers with "
    "more room than upper ones, under one budget, keep more than all alike.",
    setting=f"Window {WINDOW}; beyond it a layer holds 12 % of the entries in the mean, its newest {WINDOW} among "
    f"them, and reads all of them. Mass is that of the last {WINDOW} forward passes, the largest of five positions; "
    "the paper takes the last queries of a prompt once, where here the text streams.",
    unit="bits per byte",
    try_it=_try,
    pairs=(("attention mass, alike", "fifo, alike"), ("attention mass, pyramid", "attention mass, alike")),
)
