"""A policy in Python: an object with `plan`, asked once per commit, and what it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from mnemex.edits import Edits, arrays, places_of
from mnemex.errors import DtypeError, IdError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from mnemex._native import NativeScene

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]


@runtime_checkable
class Policy(Protocol):
    """What `Bank(write=)` takes beside the policies that are there: any object with this method.

    `plan` is called once per commit that brings tokens, while the bank is locked for other writers. It sees the rows in
    which tokens arrive; the others do not change. It may search, attend and gather, and sees the bank as it was before
    the commit; a call that would change the bank or asks what is staged (`nbytes`) raises `StateError`. Other threads
    that write wait until `plan` is done: waiting for one of them in it, or writing to a bank whose policy writes to
    this one, never ends. What `plan` raises is what `commit` raises: nothing is changed then, and
    everything stays staged.

    An object should be frozen, and its answer a function of what it is shown: a bank, its copies and its saved files
    share one policy. `name`, if it has one, is what files say, otherwise the name of its class. Where `wants_use` is
    there and true, adapters tell the bank which entries were used, as for `Lru`.

    Examples
    --------
    Entries end that were used least recently:

    >>> import mnemex as mx
    >>> class LeastRecent:
    ...     def plan(self, columns, staged, hits):
    ...         over = columns.lengths + staged.lengths - columns.capacity
    ...         return mx.Edits(kill=columns.least(columns.last_touch, over))
    >>> bank = mx.Bank(key_dim=2, capacity=3, write=LeastRecent())
    >>> bank.write(np.eye(4, 2, dtype=np.float32)).landed[0].tolist()
    [-1, 1, 2, 3]
    """

    def plan(self, columns: Columns, staged: Staged, hits: Touched) -> Edits:
        """Say what becomes of what was staged, and of entries."""
        ...


class _Side:
    """What entries and staged tokens have in common."""

    _staged: bool

    def __init__(self, scene: NativeScene, n: int) -> None:
        self._scene, self._n = scene, n

    def __len__(self) -> int:
        return self._n

    @cached_property
    def lane(self) -> Ints:
        """Lane of each: row * heads + head."""
        return self._numbers("lane")

    @cached_property
    def id(self) -> Ints:
        """Id of each, ascending in each lane; a token's is the one that it gets as an entry."""
        return self._numbers("id")

    @cached_property
    def label(self) -> Ints:
        """Label of each; -1: none."""
        return self._numbers("label")

    @cached_property
    def position(self) -> Ints:
        """Position of each."""
        return self._numbers("position")

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Numbers of each in one of the bank's own columns."""
        return _frozen(self._scene.column(self._staged, name))

    def keys(self, places: ArrayLike | None = None) -> Floats:
        """Decode keys, float32 `[n, key_dim]`: of all, or at places."""
        return self._vectors(places, value=False)

    def values(self, places: ArrayLike | None = None) -> Floats:
        """Decode values, float32 `[n, value_dim]`: of all, or at places; keys where there are no own values."""
        return self._vectors(places, value=True)

    def _vectors(self, places: ArrayLike | None, *, value: bool) -> Floats:
        at = None if places is None else places_of("places", places, self._n)
        return self._scene.vectors(self._staged, value, at)

    def _numbers(self, name: str) -> Ints:
        get = self._scene.tokens if self._staged else self._scene.entries
        return _frozen(get(name))


class Staged(_Side):
    """Tokens that a commit brings, one place for each token and head: by lane, and by id in each lane.

    Tokens that a later one replaces (`on_duplicate="replace"`) are not among them. `staged["prior"]` is a column of the
    bank's own; `lane`, `id`, `label`, `position`, `keys()` and `values()` are as for `Columns`.
    """

    _staged = True

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each lane in which tokens arrive, lanes ascending."""
        return _frozen(np.unique(self.lane, return_counts=True)[1].astype(np.int64))

    @cached_property
    def lanes(self) -> Ints:
        """The lanes in which tokens arrive, ascending."""
        return _frozen(np.unique(self.lane))

    @cached_property
    def starts(self) -> Ints:
        """Place of the first token of each of `lanes`, and one past the last."""
        return _frozen(np.append(0, np.cumsum(self.lengths)))


class Columns(_Side):
    """Live entries of the rows in which tokens arrive: by lane, and by id in each lane.

    Arrays are read-only, made when they are first asked for, and of one length. Time is counted in versions; what was
    touched since the last commit counts already. Entries that a token replaces (`on_duplicate="replace"`) are not among
    them. `columns["prior"]` is a column of the bank's own.
    """

    _staged = False

    def __init__(self, scene: NativeScene, n: int, capacity: Capacity, number: int, staged: Staged) -> None:
        super().__init__(scene, n)
        self._capacity, self._number, self._arriving = capacity, number, staged

    @property
    def capacity(self) -> int | Ints:
        """Entries of a lane at most, for each of `lanes` where heads differ; without any, the largest int64."""
        if self._capacity is None:
            return np.iinfo(np.int64).max
        each = np.asarray(self._capacity, np.int64)
        return _frozen(each[self.lanes % len(each)]) if each.ndim else int(each)

    @property
    def version(self) -> int:
        """Number of the version that the commit makes: now."""
        return self._number

    @property
    def lanes(self) -> Ints:
        """The lanes in which tokens arrive, ascending; they may have no entries yet."""
        return self._arriving.lanes

    @cached_property
    def lengths(self) -> Ints:
        """Entries of each of `lanes`."""
        return _frozen(np.diff(self.starts))

    @cached_property
    def starts(self) -> Ints:
        """Place of the first entry of each of `lanes`, and one past the last."""
        return _frozen(np.append(np.searchsorted(self.lane, self.lanes), len(self)).astype(np.int64))

    @cached_property
    def count(self) -> Ints:
        """Tokens that each entry stands for."""
        return self._numbers("count")

    @cached_property
    def hits(self) -> Ints:
        """Times that each was among the hits, as `touch` told."""
        return self._numbers("hits")

    @cached_property
    def mass(self) -> NDArray[np.float64]:
        """Softmax mass of each, as `touch` told."""
        return self._numbers("mass")  # type: ignore[return-value]

    @cached_property
    def written(self) -> Ints:
        """Version that wrote each."""
        return self._numbers("written")

    @cached_property
    def last_update(self) -> Ints:
        """Last version that wrote each or merged something into it."""
        return self._numbers("last_update")

    @cached_property
    def last_touch(self) -> Ints:
        """Last version that wrote, merged into or touched each."""
        return self._numbers("last_touch")

    def place(self, lane: ArrayLike, id: ArrayLike) -> Ints:  # noqa: A002 - what it is called everywhere
        """Find the places of entries by lane and id.

        Raises
        ------
        IdError
            An entry that is not there.
        """
        lane, ids = np.broadcast_arrays(np.asarray(lane, np.int64), np.asarray(id, np.int64))
        found = np.full(lane.shape, -1, np.int64)
        for at, (start, end) in zip(self.lanes, zip(self.starts, self.starts[1:], strict=False), strict=True):
            here = lane == at
            places = start + np.searchsorted(self.id[start:end], ids[here])
            inside = places < end
            inside[inside] = self.id[places[inside]] == ids[here][inside]
            found[here] = np.where(inside, places, -1)
        if (found < 0).any():
            lost = np.argwhere(found < 0)[0]
            raise IdError(f"lane {lane[tuple(lost)]} has no entry {ids[tuple(lost)]} among the columns")
        return found

    def least(self, worth: ArrayLike, n: ArrayLike) -> Ints:
        """Find the `n` entries of least worth of each lane; of equals the older ones.

        Parameters
        ----------
        worth
            A number per entry, without NaN.
        n
            One number, or one per lane of `lanes`; below 0 is 0, and more than a lane has is all of it.

        Returns
        -------
        places
            int64, ascending.
        """
        numbers = np.asarray(worth)
        if numbers.shape != (len(self),):
            raise ShapeError(f"worth has shape {numbers.shape}; expected one number per entry, ({len(self)},)")
        counts = np.clip(np.broadcast_to(np.asarray(n, np.int64), self.lengths.shape), 0, self.lengths)
        chosen: list[Ints] = []
        for start, length, count in zip(self.starts[:-1].tolist(), self.lengths.tolist(), counts.tolist(), strict=True):
            if count == 0:
                continue
            if count == length:
                chosen.append(np.arange(start, start + length))
                continue
            here = numbers[start : start + length]
            last = np.partition(here, count - 1)[count - 1]
            below = here < last
            equal = np.flatnonzero(here == last)[: count - np.count_nonzero(below)]
            below[equal] = True
            chosen.append(start + np.flatnonzero(below))
        return np.concatenate(chosen) if chosen else np.empty(0, np.int64)


class Touched:
    """Entries that were touched since the last commit.

    Attributes
    ----------
    place
        Their places in `columns`, ascending.
    times
        How often each was among the hits.
    mass
        Softmax mass that each was told to have.
    """

    def __init__(self, scene: NativeScene, columns: Columns) -> None:
        self._columns = columns
        self.place, self.times, self.mass = map(_frozen, scene.touched())

    def __len__(self) -> int:
        return len(self.place)

    @property
    def lane(self) -> Ints:
        """Lane of each."""
        return self._columns.lane[self.place]

    @property
    def id(self) -> Ints:
        """Id of each."""
        return self._columns.id[self.place]


def is_policy(part: object) -> bool:
    """Tell a policy in Python from a part by name or of this package."""
    return not isinstance(part, (str, type)) and callable(getattr(part, "plan", None))


Capacity = int | Sequence[int] | None
"""Entries of a lane at most: of all, or head by head."""

Native = tuple[str, bool, Callable[["NativeScene"], tuple[Any, ...]]]


def native_policy(policy: object, capacity: Capacity) -> Native:
    """Give a policy as the native bank takes it: its name, whether it wants to know of use, and what answers."""
    name = getattr(policy, "name", type(policy).__name__)
    if not isinstance(name, str):
        raise DtypeError(f"the policy's name {name!r} must be a word")

    def answer(scene: NativeScene) -> tuple[Any, ...]:
        number, _, key_dim, value_dim, n_entries, n_tokens = scene.facts
        staged = Staged(scene, n_tokens)
        columns = Columns(scene, n_entries, capacity, number, staged)
        edits = policy.plan(columns, staged, Touched(scene, columns))  # type: ignore[attr-defined]
        if not isinstance(edits, Edits):
            raise DtypeError(f"plan of {name!r} returned {type(edits).__name__}; expected mnemex.Edits")
        return arrays(edits, n_entries, n_tokens, key_dim, value_dim)

    return name, bool(getattr(policy, "wants_use", False)), answer


def _frozen(array: Any) -> Any:  # noqa: ANN401 - whatever kind of numbers it holds
    array.flags.writeable = False
    return array
