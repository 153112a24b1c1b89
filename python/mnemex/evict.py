"""Which entries go when a lane is full: small frozen objects that `Bank(evict=)` takes. A name stands for the defaults.

Every policy takes `sinks=` and `recent=`, 0 by default: so many of the oldest entries of a lane stay, the first tokens,
which much attention rests on (Xiao et al. 2024, arXiv 2309.17453), and so many of the newest.

Time is counted in versions of the bank, so nothing depends on clocks: every commit of anything makes one, and so do
`delete`, `fork` and the like. Of entries that are worth the same, the older ones go. What a policy counts is kept for
each lane by itself, follows `fork`, `reorder`, `copy` and `snapshot`, and is saved.

`Lru`, `Lfu`, `AttentionMass` and `Retention` go by what `touch` tells: without, they let the oldest go. Adapters that
write tell it by themselves where they read the best `top_k`; with `top_k=None` they tell nothing. `Retention`, and
`AttentionMass` with a `pool` or a `window`, look at a whole lane whenever it is full; the others keep a line of who
goes next.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from mnemex import _arguments as arguments
from mnemex.errors import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pinning:
    """Evict policy that leaves some entries alone.

    Parameters
    ----------
    sinks
        So many of the oldest entries of a lane stay: the first tokens, which much attention rests on (Xiao et al. 2024,
        arXiv 2309.17453).
    recent
        So many of the newest stay.
    """

    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        arguments.count("sinks", self.sinks, low=0)
        arguments.count("recent", self.recent, low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fifo(_Pinning):
    """Evict policy: the oldest entries go first. With `sinks`, a window with attention sinks."""

    name: ClassVar[str] = "fifo"


@dataclass(frozen=True, slots=True, kw_only=True)
class OldestAge(_Pinning):
    """Evict policy: the entries that were written or merged into longest ago go first; then the older ones.

    CAMELoT's replacement (He et al. 2024, arXiv 2402.13449), beside `Consolidate`. Age is the number of versions since
    the last such update; reading and `touch` do not change it.
    """

    name: ClassVar[str] = "oldest_age"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lru(_Pinning):
    """Evict policy: the least recently used entries go first; of those last used by one version, the older ones.

    An entry is used when it is written, when a token is merged into it and when `touch` names it. Neurocache's LRU
    (Safaya and Yuret 2024, arXiv 2407.02486) touches what a search found.
    """

    name: ClassVar[str] = "lru"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lfu(_Pinning):
    """Evict policy: the least frequently used entries go first.

    Parameters
    ----------
    decay
        Each version leaves this share of the uses counted so far; 1: all count alike, for ever.
    """

    name: ClassVar[str] = "lfu"
    decay: float = 1.0

    def __post_init__(self) -> None:
        _Pinning.__post_init__(self)
        _share("decay", self.decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMass(_Pinning):
    """Evict policy: the entries that were attended to least go first.

    Counts the softmax mass that `touch(hits, mass)` tells. With `sinks` and `recent`, the heavy hitters of H2O
    (Zhang et al. 2023, arXiv 2306.14048), except that heads share nothing here.

    Parameters
    ----------
    decay
        Each version leaves this share of the mass counted so far; 1: all counts alike, for ever.
    pool
        An odd number: an entry is worth the largest mass of so many around it in the order of ids (SnapKV, Li et al.
        2024, arXiv 2404.14469, pools so).
    window
        Only the mass of the last so many versions counts, as PyramidKV (Cai et al. 2024, arXiv 2406.02069) and SnapKV
        take that of the last queries: a commit of touches is one version, so what was told at once counts at once.
        Mass is summed in periods of `window` versions: that of the current one, and of the one before it the share of
        its versions that the window still covers. So it is exact when a period ends, always with window=1, and between
        as if the mass of a period came evenly. None: all counts. It does not go with a decay.
    """

    name: ClassVar[str] = "attention_mass"
    decay: float = 1.0
    pool: int = 1
    window: int | None = None

    def __post_init__(self) -> None:
        _Pinning.__post_init__(self)
        _share("decay", self.decay)
        if arguments.optional_count("window", self.window) is not None and self.decay != 1:
            raise ArgumentError(f"window={self.window!r} does not go with decay={self.decay!r}: leave one of them out")
        if arguments.count("pool", self.pool) % 2 == 0:
            raise ArgumentError(f"pool={self.pool!r} must be an odd number of entries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention(_Pinning):
    """Evict policy: the entries that are retained least go first, by R = exp(-t / S).

    t is the number of versions since an entry was written or last used, S its strength: `strength` and one more for
    each use. MemoryBank (Zhong et al. 2024, arXiv 2305.10250) has it from Ebbinghaus's forgetting curve; its code
    multiplies by S where the paper divides, so that what is strong is forgotten sooner: here it is the paper's. What
    goes is not drawn at random, as it is there.

    Parameters
    ----------
    strength
        Of an entry that was never used, in versions.
    """

    name: ClassVar[str] = "retention"
    strength: float = 1.0

    def __post_init__(self) -> None:
        _Pinning.__post_init__(self)
        arguments.real("strength", self.strength, positive=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinScore(_Pinning):
    """Evict policy: the entries with the smallest number in a column of the caller's go first.

    SirLLM (Yao et al. 2024, arXiv 2405.12528) keeps tokens by their surprise: `MinScore(column="surprise", decay=0.9,
    sinks=4)`. A NaN counts as less than any number.

    Parameters
    ----------
    column
        A float32 column of the bank's.
    decay
        Each version leaves this share of a number.
    """

    name: ClassVar[str] = "min_score"
    column: str
    decay: float = 1.0

    def __post_init__(self) -> None:
        _Pinning.__post_init__(self)
        if not isinstance(self.column, str):
            raise ArgumentError(f"column={self.column!r} must be the name of a float32 column")
        arguments.text("column", self.column)
        _share("decay", self.decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing(_Pinning):
    """Evict policy that draws lots; without a seed of its own, by the bank's."""

    seed: int | None = None

    def __post_init__(self) -> None:
        _Pinning.__post_init__(self)
        arguments.optional_count("seed", self.seed, low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Random(_Drawing):
    """Evict policy: of the entries that were there before a commit, any may go, each with the same chance.

    So an entry survives t writes of K tokens to a full lane of N with probability (1 - K / N)^t, as in MemoryLLM (Wang
    et al. 2024, arXiv 2402.04624). The rows of a bank draw alike.

    Parameters
    ----------
    seed
        Of the draws; None: the bank's.
    """

    name: ClassVar[str] = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservoir(_Drawing):
    """Evict policy: what stays is an even sample of everything that was ever written (Vitter 1985).

    Each token draws a lot when it is written, and the smallest lots go. The rows of a bank draw alike.

    Parameters
    ----------
    seed
        Of the lots; None: the bank's.
    """

    name: ClassVar[str] = "reservoir"


def _share(name: str, x: object) -> None:
    if not 0.0 < arguments.real(name, x) <= 1.0:
        raise ArgumentError(f"{name}={x!r} must be above 0 and at most 1")


def evict_options(part: object, *, seed: int) -> dict[str, object]:
    """Give what a policy was made with, as the native bank takes it; a name alone stands for its defaults."""
    if part == MinScore.name:
        raise ArgumentError('evict="min_score" needs a column: MinScore(column="surprise"), for one')
    if isinstance(part, str):
        part = EVICTS.get(part, Fifo)()  # type: ignore[call-arg]  # MinScore is out
    options = {field.name: getattr(part, field.name) for field in fields(part)}  # type: ignore[arg-type]
    return options | {"seed": seed if options.get("seed") is None else options["seed"]}


EVICTS = {
    part.name: part for part in (Fifo, OldestAge, Lru, Lfu, AttentionMass, Retention, MinScore, Random, Reservoir)
}

Evict = Fifo | OldestAge | Lru | Lfu | AttentionMass | Retention | MinScore | Random | Reservoir
