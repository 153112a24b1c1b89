"""What readers must agree with, from their definition: the entries that a query sees, as a dict from id to score."""

from __future__ import annotations

import numpy as np

import mnemex as mx


def read(seen: dict[int, np.float32], reader: int | mx.TopK | mx.Threshold | mx.Window) -> list[int]:
    """Ids of the answer to one query, -1 where there is none; `seen` has what is alive, not hidden, and has a score."""
    k = reader if isinstance(reader, int) else reader.k
    best = sorted(seen, key=lambda i: (-seen[i], i))[:k]
    if isinstance(reader, mx.Threshold):
        best = [i for i in best if seen[i] >= np.float32(reader.score)]
    best += [-1] * (k - len(best))
    if not isinstance(reader, mx.Window):
        return best
    answer = []
    for hit in best:
        near = [hit, *range(hit - reader.before, hit), *range(hit + 1, hit + reader.after + 1)]
        answer += [i if hit >= 0 and i in seen else -1 for i in near]
    return answer


def once(answer: list[int]) -> list[bool]:
    """Where each entry stands for the first time."""
    return [i >= 0 and i not in answer[:at] for at, i in enumerate(answer)]
