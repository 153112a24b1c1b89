"""What becomes of tokens that are written, where some are merged: small frozen objects that `Bank(write=)` takes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from mnemex import _arguments as arguments
from mnemex.adjacent import MergeAdjacent
from mnemex.cluster import Cluster
from mnemex.errors import ArgumentError
from mnemex.pages import Pages
from mnemex.parts import Append


@dataclass(frozen=True, slots=True, kw_only=True)
class Consolidate:
    """Write policy: a token that is near an entry is merged into it, another becomes an entry of its own.

    CAMELoT's consolidation (He et al. 2024, arXiv 2402.13449), lane by lane, one search for everything that a commit
    brings. The nearest entry is the exact one, by the canonical score of `similarity` between keys; of equally near
    ones the smaller id. Who goes when a lane is full is the evict policy's: `OldestAge()` is the paper's. It is asked
    once, at the end of the commit, and what was merged into by the same commit is as fresh as what arrived.

    `gather(ids, columns=["count"])` reads how many tokens each entry stands for, in each head: with `merge="mean"` the
    weight of its mean. `attend(bias="log_weight")` lets it weigh as many. `Receipt.landed` names the entry that each
    token ended in. A merged token has no id, label or position that finds it: these are the entry's. Deleting
    the entry deletes what was merged into it, and there is no way to take one token back out. Averages of keys that
    were rotated at different positions mean little: write keys as they were before rotary encoding.

    Keys and values are kept in float32, and NaN and infinity are never stored: one would spoil every mean that it
    reached. The sums are taken in float64, the entry's numbers first, then the tokens in the order in which they came,
    and rounded to float32 once, so that the result does not depend on threads or the instruction set.

    Parameters
    ----------
    threshold
        A token whose nearest entry scores this or more is merged into it. Above 1 with "cos": nothing is merged. Below
        -1: everything is.
    similarity
        "cos", or "dot", whatever `Bank(metric=)` says of searches.
    merge
        "mean": an entry is the mean of all that was ever written into it, K <- (c K + sum of k) / (c + n) for n tokens
        and a count of c, and the value likewise. "ema": K <- (1 - rate) K + rate (mean of k).
    rate
        With "ema" only: above 0 and at most 1.
    conflicts
        "batch_mean": every token of a commit is compared with the lane as it was before, and those that choose one
        entry are merged into it together; so tokens that are near each other alone become entries each, and the first
        commit to an empty lane merges nothing. "sequential": one token after the other, each sees what those before
        it did, as if each had a commit of its own, evictions aside.

    Raises
    ------
    ArgumentError
        A number that cannot be, or no `rate` with "ema". `Bank` refuses what does not go with it: key and value codecs
        other than "f32" and "auto", `nonfinite="keep"`, `evict="error"` and columns of the names "count" and
        "log_weight".
    """

    name: ClassVar[str] = "consolidate"
    threshold: float
    similarity: Literal["cos", "dot"] = "cos"
    merge: Literal["mean", "ema"] = "mean"
    rate: float | None = None
    conflicts: Literal["batch_mean", "sequential"] = "batch_mean"

    def __post_init__(self) -> None:
        arguments.real("threshold", self.threshold)
        arguments.word("similarity", self.similarity, ("cos", "dot"))
        arguments.word("merge", self.merge, ("mean", "ema"))
        arguments.word("conflicts", self.conflicts, ("batch_mean", "sequential"))
        if self.merge == "ema":
            if self.rate is None:
                raise ArgumentError('merge="ema" needs a rate, above 0 and at most 1: rate=0.1, for one')
            if not 0.0 < arguments.real("rate", self.rate) <= 1.0:
                raise ArgumentError(f"rate={self.rate!r} must be above 0 and at most 1")
        elif self.rate is not None:
            raise ArgumentError(f'rate={self.rate!r} goes with merge="ema": a mean weighs every token alike')


_NEEDED = {
    Consolidate.name: "a threshold: Consolidate(threshold=0.9)",
    MergeAdjacent.name: "a number of entries: MergeAdjacent(2, segment=18)",
    Cluster.name: "a distance: Cluster(delta=0.5)",
    Pages.name: "a size: Pages(size=128)",
}


def write_options(part: object, *, seed: int) -> dict[str, object] | None:
    """Give what a policy other than append was made with, as the native bank takes it."""
    if isinstance(part, str) and part in _NEEDED:
        raise ArgumentError(f'write="{part}" needs {_NEEDED[part]}, for one')
    if isinstance(part, Pages):
        return {"seed": seed} | part._options()
    if not isinstance(part, (Consolidate, MergeAdjacent, Cluster)):
        return None
    given = {field.name: getattr(part, field.name) for field in fields(part)}
    return {"seed": seed} | {name: x for name, x in given.items() if x is not None}


WRITES = {part.name: part for part in (Append, Consolidate, MergeAdjacent, Cluster, Pages)}

Write = Append | Consolidate | MergeAdjacent | Cluster | Pages
