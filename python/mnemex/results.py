"""What calls give back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Result of a search, best first: larger score, then smaller id. Unpacks as `D, I = hits`.

    Attributes
    ----------
    scores
        float32 `[rows, query_heads, T, k]` (`[T, k]` from a bank of one lane); -inf where there is no hit.
    ids
        int64, same shape; -1 where there is no hit.
    rows
        int64 `[rows]`: the bank row of each query row.

    With `mnemex.Window` the last axis has k * (1 + before + after) places: each hit is followed by its neighbours,
    padding stands wherever one is missing, and an entry may stand in several places.
    """

    scores: NDArray[np.float32]
    ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    _labels: NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Whether there is a hit, same shape as `ids`."""
        return self.ids >= 0

    @property
    def distinct(self) -> NDArray[np.bool_]:
        """Where each entry that a query found stands for the first time, same shape as `ids`.

        The same as `valid`, unless neighbours were read (`mnemex.Window`): neighbourhoods may overlap.
        """
        order = np.argsort(self.ids, axis=-1, kind="stable")
        ids = np.take_along_axis(self.ids, order, -1)
        first = np.ones(ids.shape, np.bool_)
        first[..., 1:] = ids[..., 1:] != ids[..., :-1]
        distinct = np.empty_like(first)
        np.put_along_axis(distinct, order, first, -1)
        return distinct & self.valid

    @property
    def labels(self) -> NDArray[np.int64]:
        """The callers' integers, same shape as `ids`; -1 where none was given, or there is no hit."""
        return np.full(self.ids.shape, -1, np.int64) if self._labels is None else self._labels

    def __iter__(self) -> Iterator[NDArray[np.float32] | NDArray[np.int64]]:
        return iter((self.scores, self.ids))


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """Result of an attend: one part of a softmax attention. Unpacks as `out, lse = partial`.

    Attributes
    ----------
    out
        float32 `[rows, query_heads, T, value_dim]` (`[T, value_dim]` from a bank of one lane); 0 where nothing was
        attended.
    lse
        float32 `[rows, query_heads, T]` (`[T]` from a bank of one lane): natural log of the sum of exponentials of the
        logits; -inf over nothing.
    hits
        What was attended, with `hits=True`; else None.
    mass
        float32, the shape of `hits.ids`: the softmax weight of each hit among the k, summing to 1; 0 where there is no
        hit, and where an entry stands that had a place before (`mnemex.Window`). None without `hits=True`.
    """

    out: NDArray[np.float32]
    lse: NDArray[np.float32]
    hits: Hits | None = None
    mass: NDArray[np.float32] | None = None

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return iter((self.out, self.lse))


class _Commit(Protocol):
    """What the native module tells of a commit."""

    @property
    def version(self) -> int: ...
    @property
    def evicted(self) -> int: ...
    @property
    def one_lane(self) -> list[bool]: ...
    def ids(self) -> list[NDArray[np.int64]]: ...
    def landed(self) -> list[NDArray[np.int64]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Receipt:
    """Result of a commit.

    Attributes
    ----------
    version
        Number of the version that was published; ascending.
    ids
        One int64 `[rows, T]` array per stage call (`[T]` where `stage` gave that); -1: not written, or taken back.
    evicted
        Entries, over all lanes, that the evict policy ended, or kept from being written.
    """

    version: int
    ids: list[NDArray[np.int64]]
    evicted: int
    _landed: Callable[[], list[NDArray[np.int64]]] = field(repr=False)

    @property
    def landed(self) -> list[NDArray[np.int64]]:
        """Where each token ended: one int64 `[rows, heads, T]` array per stage call (`[T]` where `stage` gave that).

        It is the token's own id unless a policy merged it into another entry; -1: it was not written, a later token
        replaced it, or the same commit evicted it. The arrays are made when they are asked for.
        """
        return self._landed()

    def __reduce__(self) -> tuple[Callable[..., Receipt], tuple[object, ...]]:
        return _receipt, (self.version, self.ids, self.evicted, self.landed)

    @classmethod
    def _of(cls, native: _Commit) -> Receipt:
        one_lane = native.one_lane
        ids = [x[0] if flat else x for x, flat in zip(native.ids(), one_lane, strict=True)]

        def landed() -> list[NDArray[np.int64]]:
            return [x[0, 0] if flat else x for x, flat in zip(native.landed(), one_lane, strict=True)]

        return cls(native.version, ids, native.evicted, landed)


def _receipt(version: int, ids: list[NDArray[np.int64]], evicted: int, landed: list[NDArray[np.int64]]) -> Receipt:
    """Make a receipt again of what was pickled."""
    return Receipt(version, ids, evicted, lambda: landed)
