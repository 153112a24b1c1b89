"""Whether slots that merge what is alike hold more than a list of the newest, at equal room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mnemex as mx
from benches.evidence.claim import Claim, Tried

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.evidence.subject import Subject

WINDOWS = (64, 128, 256)
SLOTS, K, THRESHOLD = 512, 8, 0.95


def _try(subject: Subject) -> Sequence[Tried]:
    tried = []
    slots = SLOTS if not subject.quick else 64
    for window in WINDOWS if not subject.quick else WINDOWS[:1]:
        group = f"window {window}"
        tried.append(subject.without_memory(group, window))
        ways: dict[str, dict[str, Any]] = {
            "fifo": {"evict": mx.Fifo()},
            "random": {"evict": mx.Random(seed=0)},
            "consolidated": {"write": mx.Consolidate(threshold=THRESHOLD), "evict": mx.OldestAge()},
        }
        for name, how in ways.items():
            memory = {"keys": "plain", "capacity": slots, "key_codec": "f32", "value_codec": "f32", **how}
            tried.append(subject.with_memory(group, name, window, memory=memory, attach={"top_k": K}))
    return tried


CLAIM = Claim(
    name="Consolidation at equal slots",
    source="CAMELoT, He et al. 2024, arXiv 2402.13449",
    says="A memory whose slots are means of similar tokens, the longest untouched replaced, beats as many slots that "
    "hold the newest tokens or random ones.",
    setting=f"{SLOTS} slots for each layer and head, keys as before rotary encoding and read at the distance of the "
    f"window, cosine threshold {THRESHOLD}, best {K} of each query joined with the window. The paper reads one slot a "
    "token and prepends these to the window.",
    unit="bits per byte",
    try_it=_try,
    pairs=(("consolidated", "fifo"), ("consolidated", "random")),
)
