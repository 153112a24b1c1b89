"""Should lower layers of a small cache hold more than upper ones?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mnemex as mx
from benches.evidence.claim import Claim, Tried

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.evidence.subject import Subject

WINDOW = 64
SHARE = 0.12


def _try(subject: Subject) -> Sequence[Tried]:
    n = subject.model.config.num_hidden_layers
    mean = int(SHARE * subject.entries_beyond(WINDOW))
    mass = mx.AttentionMass(pool=5, recent=WINDOW)
    ways = {
        "fifo, alike": (mean, mx.Fifo()),
        "attention mass, alike": (mean, mass),
        "attention mass, pyramid": (mx.pyramid(n, mean), mass),
    }
    tried = [subject.without_memory("", WINDOW)]
    for name, (capacity, policy) in ways.items():
        memory = {"capacity": capacity, "evict": policy}
        tried.append(subject.with_memory("", name, WINDOW, memory=memory, attach={"top_k": mean}))
    tried.append(subject.with_memory("", "the whole cache", WINDOW, attach={"top_k": None}))
    return tried
