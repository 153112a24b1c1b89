"""What pages mean, in plain loops: where they begin, what stands for them, and what a reader of whole pages takes.

Written from the definitions of the papers (LongMem, Landmark attention, InfLLM, EM-LLM) and of `mnemex.Pages`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from plain_bank import scores

if TYPE_CHECKING:
    import mnemex as mx


def bounds(how: mx.Pages) -> tuple[int, int]:
    """Give the fewest tokens and the most of a page."""
    return (1, how.size) if how.size is not None else (how.shortest or 1, how.longest or 128)


def canonical_sum(terms):
    """Sum float64 numbers: number j into accumulator j mod 8."""
    a = [0.0] * 8
    for j, term in enumerate(terms):
        a[j % 8] += term
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))


def is_surprising(surprise: float, window: list[float], gamma: float) -> bool:
    """EM-LLM: above mean + gamma * standard deviation of the tokens before."""
    if not window:
        return False
    mean = canonical_sum(window) / len(window)
    variance = canonical_sum([(x - mean) * (x - mean) for x in window]) / len(window)
    return surprise > mean + gamma * math.sqrt(variance)


@dataclass
class PlainRow:
    """The pages of a row: for each id that was ever written, the first id of its page."""

    page: dict[int, int] = field(default_factory=dict)
    members: list[int] = field(default_factory=list)
    window: list[float] = field(default_factory=list)

    def write(self, how: mx.Pages, ids, boundary=None, surprise=None):
        shortest, longest = bounds(how)
        for t, i in enumerate(ids):
            begins = bool(boundary[t]) if how.boundaries else False
            if how.surprise is not None:
                last = self.window[-(how.window or 4096) :]
                begins = is_surprising(float(surprise[t]), last, how.surprise)
                if math.isfinite(surprise[t]):
                    self.window.append(float(surprise[t]))
            if not self.members or len(self.members) == longest or (begins and len(self.members) >= shortest):
                self.members = []
            self.members.append(int(i))
            self.page[int(i)] = self.members[0]

    def forget(self):
        """Begin a page with what follows a truncation or reset."""
        self.members, self.window = [], []


def stands_for(how: mx.Pages, keys, numbers):
    """Give the key that stands for the entries of a page, in id order."""
    n = len(keys)
    if how.representatives == "mean":
        chosen = list(range(n))
    elif how.representatives == "last":
        chosen = [n - 1]
    else:
        worth = [-math.inf if math.isnan(x) else x for x in numbers]
        chosen = sorted(sorted(range(n), key=lambda j: (-worth[j], j))[: how.representatives])
    total = np.zeros(keys[0].shape, np.float64)
    for j in chosen:
        total = total + keys[j].astype(np.float64)
    return (total / len(chosen)).astype(np.float32)


def pages_of(how, seen, page, keys, numbers):
    """Give the pages of visible ids, ascending, as lists of ids, and what stands for each."""
    pages: dict[int, list[int]] = {}
    for i in sorted(seen):
        pages.setdefault(page[i], []).append(i)
    listed = [pages[number] for number in sorted(pages)]
    return listed, [stands_for(how, [keys[i] for i in ids], [numbers[i] for i in ids]) for ids in listed]


def read(how, reader, metric, queries, views, page, keys, numbers):
    """Give the ids in the places of each query's answer; `views`: what each query of the lane sees."""
    divided = [pages_of(how, seen, page, keys, numbers) for seen in views]
    scored = []
    for query, (listed, reps) in zip(queries, divided, strict=True):
        told = scores(np.array(reps), query[None], metric)[0] if reps else []
        scored.append({page[ids[0]]: s for ids, s in zip(listed, told, strict=True) if not np.isnan(s)})
    if reader.shared:
        sums: dict[int, float] = {}
        for each in scored:
            for number, s in each.items():
                sums[number] = sums.get(number, 0.0) + float(s)
        scored = [sums] * len(scored)
    answers = []
    for (listed, _), each in zip(divided, scored, strict=True):
        order = sorted(each, key=lambda number: (-each[number], number))[: reader.n]
        at = {page[ids[0]]: j for j, ids in enumerate(listed)}
        _, longest = bounds(how)
        answer = [-1] * (reader.n * (1 + 2 * reader.contiguous) * longest)
        slot = 0
        for number in order:
            here = at.get(number)
            m = reader.contiguous
            for step in [0, *range(-m, 0), *range(1, m + 1)]:
                j = -1 if here is None else here + step
                ids = listed[j] if 0 <= j < len(listed) else []
                answer[slot : slot + len(ids)] = ids
                slot += longest
        answers.append(answer)
    return answers
