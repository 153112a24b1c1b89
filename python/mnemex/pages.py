"""Pages, runs of tokens that are read whole: the policy that writes them, and the reader that takes them as `k`."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from mnemex import _arguments as arguments
from mnemex.errors import ArgumentError

LONGEST = 128
"""Tokens of a page at most, where boundaries decide; EM-LLM's and InfLLM's."""
WINDOW = 4096
"""Tokens whose surprise is the measure of the next one's; EM-LLM's."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Write policy: every token becomes an entry, and consecutive ones make a page, which `Blocks` reads whole.

    Where pages begin is decided once, when tokens are committed, for all heads of a row: after `size` tokens, at
    `boundaries`, or at `surprise`. Give one of the three. The int64 column "page", which the bank declares and fills,
    holds for each entry the id of the first token of its page: `where=("page", "==", 256)` and
    `gather(columns=["page"])` know it. Pages hold ids: a masked token has none, and counts for nothing; one that was
    replaced or evicted had one. What follows a `truncate` or `reset` begins a page, with an empty `window`.

    What stands for a page is a key that is derived from its entries when the page is read, the mean of those that
    `representatives` names, of those that the query sees: deleted and evicted entries have no part in it, nor have
    entries that `where` or `before` hides. Sums are float64, in the order of ids, rounded once. Means of keys that
    were rotated at different positions say little: write keys as they were before rotary encoding,
    `Memory.for_model(keys="plain")`.

    A full lane evicts entries by its policy, not pages: a page may be in part gone, and is read as what is left of it.
    Of a page of which nothing is left there is nothing to choose, and its neighbours are each other's.

    Parameters
    ----------
    size
        Tokens of every page: LongMem (Wang et al. 2023, arXiv 2306.07174), Landmark attention (Mohtashami and Jaggi
        2023, arXiv 2305.16300), InfLLM (Xiao et al. 2024, arXiv 2402.04617). The last one grows until it is full.
    boundaries
        True: the caller gives the bool column "boundary" with every write, and a page begins where it is True.
    surprise
        A number gamma: the caller gives the float32 column "surprise" with every write, -log p of each token in nats,
        and a page begins where it is above mean + gamma * standard deviation of the `window` tokens before: EM-LLM
        (Fountas et al. 2024, arXiv 2407.09450), without its refinement by modularity. The deviation is that of a
        population. A number that is not finite stays out of the window; infinity begins a page, NaN does not.
    window
        With `surprise`: tokens at most; None: 4096.
    shortest, longest
        With `boundaries` and `surprise`: a page that has fewer than `shortest` tokens goes on, one that has `longest`
        ends; None: 1 and 128. EM-LLM's are 8 and 128. `longest`, or `size`, is the places that a page takes in an
        answer.
    representatives
        "mean": of all keys (LongMem). "last": the last key alone (Landmark attention's landmark). A number r: of the r
        keys with the largest numbers in the float32 column "representative", which the caller gives with every write;
        of equal ones the smaller id, and NaN is smallest. InfLLM's and EM-LLM's r is 4, and the number what queries of
        the local window paid the token; by "dot", their r scores add up to r times that of the mean.

    Raises
    ------
    ArgumentError, DtypeError
        None or several of the three, or a number that cannot be. `stage` refuses tokens without a column that the
        pages are made by, and a column "page".
    """

    name: ClassVar[str] = "pages"
    size: int | None = None
    _: KW_ONLY
    boundaries: bool = False
    surprise: float | None = None
    window: int | None = None
    shortest: int | None = None
    longest: int | None = None
    representatives: Literal["mean", "last"] | int = "mean"

    def __post_init__(self) -> None:
        arguments.flag("boundaries", self.boundaries)
        ways = {"size": self.size is not None, "boundaries": self.boundaries, "surprise": self.surprise is not None}
        named = [name for name, given in ways.items() if given]
        if len(named) != 1:
            what = " and ".join(named) or "none of them"
            raise ArgumentError(f"Pages takes one of size=, boundaries=True and surprise=, and was given {what}")
        if self.size is not None:
            arguments.count("size", self.size)
        if self.surprise is not None:
            arguments.real("surprise", self.surprise)
        for name, other in (("window", "surprise"), ("shortest", "boundaries or surprise"), ("longest", "the same")):
            number = getattr(self, name)
            if number is None:
                continue
            arguments.count(name, number)
            if self.size is not None or (name == "window" and self.surprise is None):
                goes = "boundaries or surprise" if other == "the same" else other
                raise ArgumentError(f"{name}={number!r} goes with {goes}: {named[0]} leaves it nothing to say")
        if not isinstance(self.representatives, str):
            arguments.count("representatives", self.representatives)
        elif self.representatives not in ("mean", "last"):
            raise ArgumentError(
                f"representatives={self.representatives!r} must be 'mean', 'last' or a number of tokens"
            )

    def _options(self) -> dict[str, object]:
        """Give what the native bank takes."""
        words = isinstance(self.representatives, str)
        size = self.size if self.size is not None else self.longest or LONGEST
        return {
            "boundaries": "size" if self.size is not None else "column" if self.boundaries else "surprise",
            "surprise": 0.0 if self.surprise is None else float(self.surprise),
            "window": self.window or WINDOW,
            "shortest": self.shortest or 1,
            "longest": size,
            "representatives": self.representatives if words else "best",
            "r": 0 if words else self.representatives,
        }

    def _columns(self) -> dict[str, str]:
        """Give the columns that the pages are made by, and the one that says where they are."""
        columns = {"boundary": "bool"} if self.boundaries else {}
        if self.surprise is not None:
            columns["surprise"] = "float32"
        if not isinstance(self.representatives, str):
            columns["representative"] = "float32"
        return columns | {"page": "int64"}


def with_pages(write: object, columns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Add the columns of a bank's pages to those that it declares."""
    if not isinstance(write, Pages):
        return columns
    declared = dict(columns)
    for name, dtype in write._columns().items():
        if declared.setdefault(name, dtype) != dtype:
            raise ArgumentError(f"columns[{name!r}]={declared[name]!r}: write=Pages needs it as {dtype!r}, or left out")
    return list(declared.items())


@dataclass(frozen=True, slots=True)
class Blocks:
    """Reader: the `n` pages whose representatives score best, each read whole, with its neighbours.

    For a bank with `write=Pages(...)`. LongMem, Landmark attention, InfLLM and EM-LLM read so. Exact: the score of a
    representative is canonical, as every score is, and of pages that score the same the older is taken. A page is there
    for a query that sees an entry of it.

    An answer has n * (1 + 2 * contiguous) * longest places per query, `longest` of the bank's `Pages`: the pages in
    the order of their representatives' scores, each followed by its neighbours, those before it first, both in the
    order of time. The entries of a page stand in the first of its places in the order of ids, with canonical scores of
    their own; the other places are padding, score -inf, id and label -1, as are those of a neighbour that is not
    there. So places can be reshaped to `[n, 1 + 2 * contiguous, longest]`. A page may be read in several places, as a
    neighbour of two or chosen itself: `search` gives its entries in all of them, `attend` weighs each once, as with
    `mnemex.Window`.

    Parameters
    ----------
    n
        Pages per query, at least 1; `attend` clamps it to the pages of the lane that has the most.
    contiguous
        Pages before and pages after each of them that come with it, of those of which the query sees an entry: EM-LLM's
        contiguity.
    shared
        False: each query chooses its pages (LongMem, Landmark). True: all queries of a call that read one lane, those
        of the query heads of a group too, choose together, by the sum of their scores, in float64, in their order: one
        search per block of queries (InfLLM, EM-LLM, whose mean query is the same order for "dot"). Then what is chosen
        for a query depends on those beside it; what it sees of it does not. Queries that are not finite, or see
        nothing of a page, have no say about it.

    Raises
    ------
    ArgumentError, DtypeError
        Numbers that are not whole or too small. `search` and `attend` refuse it where a bank has no pages.
    """

    n: int
    contiguous: int = 0
    shared: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", arguments.count("n", self.n))
        object.__setattr__(self, "contiguous", arguments.count("contiguous", self.contiguous, low=0))
        object.__setattr__(self, "shared", arguments.flag("shared", self.shared))

    def _numbers(self) -> tuple[int, float, int, int, int]:
        return self.n, -math.inf, self.contiguous, self.contiguous, 2 if self.shared else 1
