"""The parts a bank is put together from: small frozen objects. A name stands for a part with its defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mnemex import _arguments as arguments
from mnemex.errors import ArgumentError, DtypeError
from mnemex.pages import Blocks


@dataclass(frozen=True, slots=True)
class F32:
    """Codec: IEEE single precision, 4 bytes a number."""

    name: ClassVar[str] = "f32"


@dataclass(frozen=True, slots=True)
class F16:
    """Codec: IEEE half precision, 2 bytes a number; numbers beyond 65504 are refused."""

    name: ClassVar[str] = "f16"


@dataclass(frozen=True, slots=True)
class BF16:
    """Codec: bfloat16, 2 bytes a number, the range of single precision."""

    name: ClassVar[str] = "bf16"


@dataclass(frozen=True, slots=True)
class Flat:
    """Index: one list, looked at whole; exact."""

    name: ClassVar[str] = "flat"


@dataclass(frozen=True, slots=True)
class Append:
    """Write policy: every token becomes an entry."""

    name: ClassVar[str] = "append"


@dataclass(frozen=True, slots=True)
class TopK:
    """Reader: the best `k` entries of each query. As `k` of `search` or `attend`, the same as the number.

    Parameters
    ----------
    k
        Entries per query, at least 1.

    Raises
    ------
    ArgumentError, DtypeError
        Anything but a whole number of at least 1.
    """

    k: int

    def __post_init__(self) -> None:
        _set(self, k=arguments.count("k", self.k))

    def _numbers(self) -> _Numbers:
        return self.k, -math.inf, 0, 0, 0


@dataclass(frozen=True, slots=True)
class Threshold:
    """Reader: of the best `k` entries of each query, those whose score is at least `score`.

    Exact as `search` is: the canonical score decides, after which the scale and bias of an `attend` have no say. Places
    that are left over are padding; an `attend` over none gives 0, with a log-sum-exp of minus infinity.

    Parameters
    ----------
    score
        In the bank's metric, larger being nearer: for "l2" it is minus a squared distance. Rounded to float32, as
        scores are. Minus infinity lets every score through, infinity only those that overflow.
    k
        Entries per query at most, at least 1; answers have as many places.

    Raises
    ------
    ArgumentError, DtypeError
        A score that is NaN, or a finite one that float32 cannot hold; a `k` that is no whole number of at least 1.
    """

    score: float
    k: int

    def __post_init__(self) -> None:
        _set(self, score=_score(self.score), k=arguments.count("k", self.k))

    def _numbers(self) -> _Numbers:
        return self.k, self.score, 0, 0, 0


@dataclass(frozen=True, slots=True)
class Window:
    """Reader: the best `k` entries of each query, each with its neighbours: those written just before and just after.

    Neighbourhoods are those of Neurocache (Safaya and Yuret 2024, arXiv 2407.02486), whose default is the hit and its
    successor, as here. An answer has k * (1 + before + after) places per query: the hits in the order of their scores,
    each followed by the entries with ids hit - before to hit - 1 and hit + 1 to hit + after of its lane, which have
    canonical scores of their own. A neighbour that is not there (deleted, evicted, never written, hidden from the query
    by `where` or `before`, or without a score because that is NaN) leaves padding in its place: score -inf, id and
    label -1. Where a lane has fewer than k entries, the places of the others and of their neighbours are padding.

    Neighbourhoods may overlap. `search` gives an entry in every place that it has; `attend` weighs it once. With
    `hits=True` an attend keeps the places too: the weight of an entry stands in its first place, later ones have 0.
    `Hits.distinct` tells first places from others; `touch` and `attend_backward` count an entry once per query.

    Parameters
    ----------
    k
        Hits per query, at least 1; `attend` clamps it to the longest lane.
    before, after
        Neighbours with smaller and with larger ids, at least 0.

    Raises
    ------
    ArgumentError, DtypeError
        Numbers that are not whole or too small.
    """

    k: int
    before: int = 0
    after: int = 1

    def __post_init__(self) -> None:
        low = {"k": 1, "before": 0, "after": 0}
        _set(self, **{name: arguments.count(name, getattr(self, name), low=least) for name, least in low.items()})

    def _numbers(self) -> _Numbers:
        return self.k, -math.inf, self.before, self.after, 0


@dataclass(frozen=True, slots=True)
class Shared:
    """Reader of the adapters: each local token looks up its best `k` entries by its own key, for all who see the token.

    The pairs that were looked up are prepended to the local keys and values, in one softmax: a query sees those of
    every local token that it sees itself, so causality and padding hold for them too, and an entry that m such tokens
    looked up counts m times. With k = 1, CAMELoT's augmentation (He et al. 2024, arXiv 2402.13449).

    It is a `top_k` of `mnemex.torch.attention` and of both `attach`. `Bank.search` and `attend` refuse it: they know no
    local tokens. No query reads an entry alone, so evict policies that go by use are told nothing, as with
    `top_k=None`.

    Parameters
    ----------
    k
        Entries per local token and key/value head, at least 1.

    Raises
    ------
    ArgumentError, DtypeError
        Anything but a whole number of at least 1.
    """

    k: int = 1

    def __post_init__(self) -> None:
        _set(self, k=arguments.count("k", self.k))

    def _numbers(self) -> _Numbers:
        raise ArgumentError(
            f"k={self!r} shares entries among local tokens, which a bank does not know: give it to an adapter as "
            f"top_k, or search with the number, {self.k}"
        )


CODECS = {part.name: part for part in (F32, F16, BF16)}
INDEXES = {part.name: part for part in (Flat,)}
Codec = F32 | F16 | BF16
Reader = TopK | Threshold | Window | Shared | Blocks

_Numbers = tuple[int, float, int, int, int]
"""A reader for the native module: the best so many, the least score, neighbours before and after; then 0: of
entries, 1: of pages, 2: of pages that queries choose together."""


def reader(k: int | Reader) -> _Numbers:
    """Take a number of entries, or a reader, for the native module."""
    if isinstance(k, Reader):
        return k._numbers()
    try:
        return TopK(k)._numbers()
    except (ArgumentError, DtypeError) as error:
        raise type(error)(f"{error}, or a reader: mnemex.TopK, Threshold, Window or Blocks") from None


def _score(x: object) -> float:
    """Take a number that float32 can hold, or an infinity."""
    try:
        score = float(x)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return arguments.real("score", x)  # which says what is wrong
    if math.isnan(score):
        raise ArgumentError("score=nan must be a number that float32 can hold, or an infinity: no score is NaN")
    return score if math.isinf(score) else arguments.real("score", x)


def _set(part: object, **numbers: float) -> None:
    """Let a part hold plain numbers, whatever kind it was given."""
    for name, number in numbers.items():
        object.__setattr__(part, name, number)
