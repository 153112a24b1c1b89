"""What a claim is, and the rule that judges it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benches.evidence.subject import Subject

Verdict = Literal["holds", "does not hold", "null"]

STANDARD_ERRORS = 2.0
"""A mean difference below so many of its standard errors decides nothing."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One way to read the texts.

    Attributes
    ----------
    group, name
        What was varied (a size of window, say), and how the texts were read.
    results
        One number for each text.
    memory_bytes
        What the memory held at the end, keys, values and bookkeeping, mean over the texts; 0 without one.
    seconds
        Time in the model, all texts together.
    """

    group: str
    name: str
    results: tuple[float, ...]
    memory_bytes: int
    seconds: float

    @property
    def mean(self) -> float:
        return sum(self.results) / len(self.results)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the rule says of a pair: by how much `better` beats `worse`, mean over texts, and how sure that is."""

    group: str
    better: str
    worse: str
    gain: float
    error: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something published, as it can be tried here.

    Attributes
    ----------
    name, source
        What to call it, and the paper.
    says
        What should come out.
    setting
        How it is tried, in one paragraph.
    unit
        Of the results; smaller is better unless `larger_is_better`.
    try_it
        Runs it.
    on
        The model: "pretrained", or the "small" one that is trained for it.
    pairs
        What must beat what, by name, in every group.
    """

    name: str
    source: str
    says: str
    setting: str
    unit: str
    try_it: Callable[[Subject], Sequence[Tried]]
    pairs: tuple[tuple[str, str], ...]
    larger_is_better: bool = False
    on: Literal["pretrained", "small"] = "pretrained"


def judge(claim: Claim, tried: Sequence[Tried]) -> list[Judgement]:
    """Compare the pairs of a claim, text by text.

    A pair holds if the mean gain over the texts is above two of its standard errors, and fails if it is below minus
    two; everything between is null, and so is a single text.
    """
    found = []
    for group in dict.fromkeys(each.group for each in tried):
        of_group = {each.name: each for each in tried if each.group == group}
        for better, worse in claim.pairs:
            if better in of_group and worse in of_group:
                found.append(_judged(claim, group, of_group[better], of_group[worse]))
    return found


def overall(judgements: Sequence[Judgement]) -> Verdict:
    """Say that a claim holds where every pair does, and not where one fails; else the outcome is null."""
    verdicts = {each.verdict for each in judgements}
    if verdicts == {"holds"}:
        return "holds"
    return "does not hold" if "does not hold" in verdicts else "null"


def record(claim: Claim, tried: Sequence[Tried]) -> dict[str, Any]:
    """Give a claim's outcome as one JSON object."""
    judgements = judge(claim, tried)
    about = {name: getattr(claim, name) for name in ("name", "source", "says", "setting", "unit")}
    return about | {
        "tried": [asdict(each) for each in tried],
        "judgements": [asdict(each) for each in judgements],
        "verdict": overall(judgements),
    }


def _judged(claim: Claim, group: str, better: Tried, worse: Tried) -> Judgement:
    sign = 1.0 if claim.larger_is_better else -1.0
    gains = [sign * (b - w) for b, w in zip(better.results, worse.results, strict=True)]
    n, gain = len(gains), sum(gains) / len(gains)
    error = math.sqrt(sum((each - gain) ** 2 for each in gains) / (n - 1) / n) if n > 1 else math.inf
    verdict: Verdict = "null"
    if n > 1 and abs(gain) > STANDARD_ERRORS * error:
        verdict = "holds" if gain > 0 else "does not hold"
    return Judgement(group=group, better=better.name, worse=worse.name, gain=gain, error=error, verdict=verdict)
