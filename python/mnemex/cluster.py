"""Tokens with keys near each other make a cluster, of which a sample is kept: an object that `Bank(write=)` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mnemex import _arguments as arguments
from mnemex.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Cluster:
    """Write policy: a token joins the cluster of the nearest representative within `delta`, or founds one.

    SubGen's clusters (Zandieh et al. 2024, arXiv 2402.06082), lane by lane and token by token. A token whose key is at
    most delta away (Euclidean, whatever `Bank(metric=)` says) from the nearest representative joins its cluster; of
    equally near ones the older. Another token becomes the representative of a cluster of its own, for good. Beside it,
    a cluster of n tokens keeps an even sample of up to `reservoir` of the other n - 1 (Vitter 1985), keys and values
    as they were written, in any codec: at most (1 + reservoir) entries per cluster, however long the stream.

    `attend(queries, k, bias="log_weight")` reads it: a representative weighs 1, a sample as many tokens as it stands
    for, (n - 1) / min(reservoir, n - 1). So the sum under the softmax, and that of values above it, are those of all
    tokens on average over the draws; `lse` and `out` follow from them, and `merge` joins a recent window that is read
    exactly. Without the bias every entry weighs 1.

    `gather(ids, columns=["count", "log_weight"])` reads, in each head, the tokens of its cluster where an entry
    represents one, and 0 where it is a sample, which is counted there. `Receipt.landed` names a token's own id where it
    represents or is in the sample, else the representative's. A token that leaves the sample for another is not counted
    as evicted. Where a policy or `delete` ends an entry, what it weighs goes with it; without its representative, a
    sample weighs 1 and no token joins any more.

    Exact: how clusters grow, their counts, and the estimate of the softmax's sum, (n / t) times the sum over a uniform
    sample of t. This project's own reading: the representative stands for itself and only the others are sampled,
    without replacement; and values are summed over the same sample, where the paper draws a second one of the whole
    stream by squared norm. So an answer is a weighted mean of values that were written, which the paper's need not be.

    Parameters
    ----------
    delta
        Largest distance of a member's key to the representative's, at least 0: equal keys alone.
    reservoir
        Members of a cluster that are kept beside its representative, at least 1.
    seed
        Of the draws, which are hashes of it, the head and the id; None: the bank's. The rows of a bank draw alike.

    Raises
    ------
    ArgumentError, DtypeError
        A number that cannot be. `Bank` refuses what does not go with it: `nonfinite="keep"`, `evict="error"`, and
        columns of the names "count" and "log_weight".
    """

    name: ClassVar[str] = "cluster"
    delta: float
    reservoir: int = 4
    seed: int | None = None

    def __post_init__(self) -> None:
        if arguments.real("delta", self.delta) < 0:
            raise ArgumentError(f"delta={self.delta!r} is a distance: it must be 0 or more")
        arguments.count("reservoir", self.reservoir)
        arguments.optional_count("seed", self.seed, low=0)
