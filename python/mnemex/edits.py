"""What a policy in Python answers: edits of all lanes, as numpy arrays, and the checks of their types and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mnemex.errors import ArgumentError, DtypeError, IdError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Ints = NDArray[np.int64]

_NOTHING = ()


@dataclass(frozen=True, slots=True, eq=False)
class Edits:
    """What a policy wants done, for all lanes at once.

    Entries go by their *place* in `columns`, tokens by their place in `staged`: a number from 0, or a boolean mask of
    that length. Where either may stand, tokens are counted on from the entries: place `len(columns) + t` is token t.

    Parameters
    ----------
    append
        Tokens that become entries; None: every token that is not merged. A token that is neither is dropped.
    kill
        Entries that end.
    merge
        `(into, tokens)`, two arrays of one length: each token becomes part of an entry of its lane, or of a token
        that is appended there. An entry that is not in `rewrite` becomes the mean of all that it stands for,
        K <- (c K + sum of k) / (c + n) for n tokens and a count of c, and the value likewise: sums in float64, the
        entry first, then the tokens in this order, rounded once.
    rewrite
        `(places, keys, values)`: entries, or tokens that are appended, that get these keys `[n, key_dim]` and values
        `[n, value_dim]`, float32 (None where the bank has no values of their own).

    Notes
    -----
    A plan names an entry once: as killed, or as one that is merged into, rewritten, or both. What it leaves beyond the
    capacity goes as `Bank(evict=)` says.
    """

    append: ArrayLike | None = None
    kill: ArrayLike = _NOTHING
    merge: tuple[ArrayLike, ArrayLike] | None = None
    rewrite: tuple[ArrayLike, ArrayLike, ArrayLike | None] | None = None


def arrays(edits: Edits, n: int, m: int, key_dim: int, value_dim: int | None) -> tuple[Any, ...]:
    """Check types and shapes, for the native module; it checks what places mean."""
    into, tokens = (np.empty(0, np.int64),) * 2
    if edits.merge is not None:
        into, tokens = _pair("merge", edits.merge, 2, "(into, tokens)")
        into, tokens = places_of("merge into", into, n + m), places_of("merge tokens", tokens, m)
        if into.shape != tokens.shape:
            raise ShapeError(f"plan: merge names {len(into)} entries for {len(tokens)} tokens; expected one for each")
    append = np.ones(m, bool)
    if edits.append is None:
        append[tokens] = False
    else:
        places = places_of("append", edits.append, m)
        append = np.zeros(m, bool)
        append[places] = True
        if np.count_nonzero(append) != len(places):
            raise ArgumentError("plan: append names a token twice")
    rewrite = np.empty(0, np.int64)
    keys, values = np.empty((2, 0), np.float32)
    if edits.rewrite is not None:
        where, new_keys, new_values = _pair("rewrite", edits.rewrite, 3, "(places, keys, values)")
        rewrite = places_of("rewrite", where, n + m)
        keys = _vectors("keys", new_keys, len(rewrite), key_dim)
        if value_dim is not None:
            values = _vectors("values", new_values, len(rewrite), value_dim)
        elif new_values is not None:
            raise ArgumentError("plan: rewrite gives values to a bank that has none of their own: expected None")
    return append, places_of("kill", edits.kill, n), into, tokens, rewrite, keys, values


def _pair(name: str, given: object, n: int, expected: str) -> tuple[Any, ...]:
    if not isinstance(given, tuple) or len(given) != n:
        raise ShapeError(f"plan: {name} is {type(given).__name__}; expected {expected}")
    return given


def places_of(name: str, given: object, n: int) -> Ints:
    """Take places or a mask of n."""
    try:
        array = np.asarray(given)
    except ValueError:
        raise ShapeError(f"plan: {name} is ragged; expected places or a mask") from None
    if array.size == 0 and array.ndim <= 1 and array.dtype != bool:
        return np.empty(0, np.int64)
    if array.ndim != 1:
        raise ShapeError(f"plan: {name} has shape {array.shape}; expected places [n], or a mask [{n}]")
    if array.dtype == bool:
        if len(array) != n:
            raise ShapeError(f"plan: {name} is a mask of {len(array)}; expected one of {n}")
        return np.flatnonzero(array)
    if array.dtype.kind not in "iu":
        raise DtypeError(f"plan: {name} is {array.dtype}; expected whole numbers, or a mask")
    out = (array < 0) | (array >= n)
    if out.any():
        raise IdError(f"plan: {name} names place {array[out][0]}; places are from 0 to {n - 1}")
    return np.ascontiguousarray(array, np.int64)


def _vectors(name: str, given: object, n: int, dim: int) -> NDArray[np.float32]:
    array = np.asarray(given)
    if array.dtype != np.float32:
        raise DtypeError(f"plan: {name} are {array.dtype}; expected float32: {name}.astype(np.float32)")
    if array.shape != (n, dim):
        raise ShapeError(f"plan: {name} have shape {array.shape}; expected [{n}, {dim}]")
    return np.ascontiguousarray(array).reshape(-1)
