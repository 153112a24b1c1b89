"""What a full memory should forget: attention mass against the order of arrival, and lots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mnemex as mx
from benches.evidence.claim import Claim, Tried

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.evidence.subject import Subject

WINDOW, K = 128, 32
SHARE = 4


def _try(subject: Subject) -> Sequence[Tried]:
    capacity = subject.entries_beyond(WINDOW) // SHARE
    read = {"top_k": K}
    policies = {
        "fifo": mx.Fifo(),
        "random": mx.Random(seed=0),
        "least recently read": mx.Lru(),
        "attention mass": mx.AttentionMass(recent=capacity // 4),
        "attention mass, fading": mx.AttentionMass(decay=0.9, recent=capacity // 4),
    }
    tried = [subject.without_memory("", WINDOW)]
    for name, policy in policies.items():
        memory = {"capacity": capacity, "evict": policy}
        tried.append(subject.with_memory("", name, WINDOW, memory=memory, attach=read))
    tried.append(subject.with_memory("", "every entry kept", WINDOW, attach=read))
    return tried


CLAIM = Claim(
    name="Attention mass decides who stays",
    source="H2O, Zhang et al. 2023, arXiv 2306.14048: entries that were attended to most are worth keeping",
    says="With room for a quarter of the entries, keeping those that got most attention beats keeping the newest.",
    setting=f"Window {WINDOW}, best {K} of each query, all layers. The memory has room for a quarter of what leaves "
    "the window; a quarter of that is kept for the newest entries under attention mass, so that they get a chance.",
    unit="bits per byte",
    try_it=_try,
    pairs=(("attention mass", "fifo"), ("attention mass", "random")),
)
