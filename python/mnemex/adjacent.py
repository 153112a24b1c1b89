"""Tokens that are alike and follow one another become one: a small frozen object that `Bank(write=)` takes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from mnemex import _arguments as arguments
from mnemex.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class MergeAdjacent:
    """Write policy: of each segment of the stream, neighbours that are most alike are merged until `n` are left.

    MovieChat's consolidation (Song et al. 2024, arXiv 2307.16449), lane by lane: of all pairs of neighbours in the
    order of ids, the pair whose keys score highest becomes one entry, which is compared with its own neighbours from
    then on, until n entries are left. Of pairs that score the same, the oldest goes first. Published, for the frames of
    a video: n=2, segment=18, similarity="dot", merge="midpoint", beyond="merge" with a capacity of 256.

    The older of two keeps its id, label, position and columns; `Receipt.landed` names it, and
    `gather(ids, columns=["count"])` reads how many tokens it stands for, in each head. Deleting it deletes what was
    merged into it. Entries that a deletion or an evict policy ended are passed over: their neighbours are neighbours.

    Exact: adjacent pairs only, the most similar first, the two-stage memory (a short list, merged when it is full, and
    a long one). This project's own reading: similarity is that of two keys, where frames have a matrix of tokens each;
    the published program merges the least similar pair of its long list, by a distance taken for a similarity, and
    here it is the most similar there too, as the paper says. Keys and values are kept in float32; a merge sums in
    float64, the older one first, and rounds once. `attend(bias="log_weight")` lets an entry weigh as many tokens as it
    stands for.

    Parameters
    ----------
    n
        Entries that are left of a segment, at least 1.
    segment
        Ids of a segment, at least n: the first has the ids from 0 to segment - 1. It is merged by the commit that
        completes it; until then its tokens are entries each, so what comes of a stream does not depend on how it was
        cut into commits. None: what one commit brings is a segment.
    similarity
        "cos", or "dot", whatever `Bank(metric=)` says of searches.
    merge
        "mean": the two weigh as many tokens as they stand for. "midpoint": they weigh the same.
    beyond
        What happens to a lane with more entries than its capacity after that. "evict": the evict policy says who goes.
        "merge": neighbours are merged, wherever they stand in the lane, until they fit, and nothing is evicted; this
        looks at the whole lane at each commit.

    Raises
    ------
    ArgumentError, DtypeError
        A number that cannot be. `Bank` refuses what does not go with it: key and value codecs other than "f32" and
        "auto", `nonfinite="keep"`, `evict="error"`, columns of the names "count" and "log_weight", and
        `beyond="merge"` without a capacity.
    """

    name: ClassVar[str] = "merge_adjacent"
    n: int
    segment: int | None = None
    _: KW_ONLY
    similarity: Literal["cos", "dot"] = "cos"
    merge: Literal["mean", "midpoint"] = "mean"
    beyond: Literal["evict", "merge"] = "evict"

    def __post_init__(self) -> None:
        n, segment = arguments.count("n", self.n), arguments.optional_count("segment", self.segment)
        if segment is not None and segment < n:
            raise ArgumentError(f"segment={segment} must be at least n={n}: that many entries are left of it")
        arguments.word("similarity", self.similarity, ("cos", "dot"))
        arguments.word("merge", self.merge, ("mean", "midpoint"))
        arguments.word("beyond", self.beyond, ("evict", "merge"))
