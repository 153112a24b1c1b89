"""Numbers, row numbers and side arrays, checked once at the border and turned into what the native module takes."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mnemex.errors import ArgumentError, DtypeError, RowError, ShapeError
from mnemex.results import Hits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mnemex._arrays import IntsLike

INT64_MAX = 2**63 - 1
# A float of Python's own: numpy would round what is compared with its own to float32, and warn.
FLOAT32_MAX = float(np.finfo(np.float32).max)
NONFINITE = ("raise", "keep", "skip")


class Named(Protocol):
    """A part."""

    @property
    def name(self) -> str: ...


def count(name: str, x: object, *, low: int = 1) -> int:
    """Take a whole number of at least `low` that fits 63 bits."""
    try:
        n = operator.index(x)  # type: ignore[arg-type]
    except TypeError:
        raise DtypeError(f"{name}={x!r} must be a whole number of at least {low}") from None
    if isinstance(x, bool) or not low <= n <= INT64_MAX:
        raise ArgumentError(f"{name}={x!r} must be a whole number from {low} to 2**63 - 1")
    return n


def optional_count(name: str, x: object, *, low: int = 1) -> int | None:
    """Take the same, or None."""
    return None if x is None else count(name, x, low=low)


def real(name: str, x: object, *, positive: bool = False) -> float:
    """Take a finite number."""
    try:
        y = float(x)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DtypeError(f"{name}={x!r} must be a number") from None
    except OverflowError:
        y = math.inf
    if not math.isfinite(y) or (positive and y <= 0) or abs(y) > FLOAT32_MAX:
        kind = "positive" if positive else "finite"
        raise ArgumentError(f"{name}={x!r} must be a {kind} number that float32 can hold")
    return y


def part(name: str, x: object, known: Mapping[str, type]) -> str:
    """Take a part of one kind, or its name."""
    if isinstance(x, str) and x in known:
        return x
    if isinstance(x, tuple(known.values())):
        return type(x).name  # type: ignore[attr-defined]
    expected = ", ".join(repr(word) for word in known)
    raise ArgumentError(f"{name}={x!r} is not known; expected one of {expected}")


def word(name: str, x: object, known: tuple[str, ...]) -> str:
    """Take one of a few words."""
    if isinstance(x, str) and x in known:
        return x
    raise ArgumentError(f"{name}={x!r} is not known; expected one of {', '.join(map(repr, known))}")


def nonfinite(x: object) -> str | None:
    """Take what a call does about NaN and infinity; None: what the bank does."""
    return None if x is None else word("nonfinite", x, NONFINITE)


def flag(name: str, x: object) -> bool:
    """Take True or False."""
    if not isinstance(x, (bool, np.bool_)):
        raise DtypeError(f"{name}={x!r} must be True or False")
    return bool(x)


def text(name: str, x: str) -> str:
    """Take a word that can be written as UTF-8, as a column's name must be."""
    try:
        x.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{name}={x!r} is not text: it holds half of a surrogate pair") from None
    return x


def effort(x: object) -> None:
    """Check a share in (0, 1], or a dict of an index's units; no index has units yet, and all look at every entry."""
    if x is None:
        return
    if isinstance(x, Mapping):
        if x:
            raise ArgumentError(f"effort names {next(iter(x))!r}; index='flat' has no units, it looks at every entry")
        return
    if isinstance(x, (bool, np.bool_)) or not 0 < real("effort", x) <= 1:
        raise ArgumentError(f"effort={x!r} must be a share of the entries, above 0 and at most 1, or a dict")


def any_array(name: str, x: object) -> NDArray[Any]:
    """Take whatever numpy makes an array of."""
    try:
        return np.asarray(x)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise DtypeError(f"{name} must be an array of numbers: {error}") from None


def ints(name: str, x: IntsLike) -> NDArray[np.int64]:
    """Take whole numbers as a contiguous int64 array of any shape."""
    array = any_array(name, x)
    if array.size == 0 and array.dtype == np.float64 and not isinstance(x, np.ndarray):
        array = array.astype(np.int64)  # numpy's type for an empty list
    if array.dtype.kind not in "iu":
        raise DtypeError(f"{name} are {array.dtype}; expected whole numbers (int64)")
    if array.dtype.kind == "u" and array.size and int(array.max()) > INT64_MAX:
        raise ArgumentError(f"{name} hold {int(array.max())}, which is beyond int64")
    return np.ascontiguousarray(array, np.int64).reshape(array.shape)


def rows(name: str, x: IntsLike | None, n_rows: int) -> NDArray[np.int64] | None:
    """Take row numbers, or a boolean mask over the rows."""
    if x is None:
        return None
    array = any_array(name, x)
    if array.dtype == bool:
        if array.shape != (n_rows,):
            raise ShapeError(f"{name} is a mask of shape {array.shape}; the bank has {n_rows} rows")
        return np.flatnonzero(array).astype(np.int64)
    numbers = ints(name, x)
    if numbers.ndim != 1:
        raise ShapeError(f"{name} have shape {numbers.shape}; expected a list of row numbers, or a mask")
    outside = numbers[(numbers < 0) | (numbers >= n_rows)]
    if outside.size:
        raise RowError(f"{name} name row {outside[0]}; the bank has {n_rows} rows, numbered from 0")
    return numbers


def side(name: str, x: object, shape: tuple[int, int], dtype: type, *, one_lane: bool) -> NDArray[np.generic] | None:
    """Take one number per token, `[rows, T]` (`[T]` for one lane), flat and contiguous."""
    if x is None:
        return None
    if dtype is bool:
        array = any_array(name, x)
        if array.dtype.kind not in "bi" or (array.dtype.kind == "i" and not np.isin(array, (0, 1)).all()):
            raise DtypeError(f"{name} is {array.dtype}; expected booleans")
        array = array.astype(bool)
    else:
        array = ints(name, x)  # type: ignore[arg-type]
    if array.shape != shape and not (one_lane and array.shape == shape[1:]):
        raise ShapeError(f"{name} has shape {array.shape}; expected [rows, T] = {list(shape)}")
    return np.ascontiguousarray(array.reshape(-1))


def hits(x: object, heads: int, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take hits of a bank of so many heads and rows; the bank rows, and ids `[rows, query_heads, T, k]`."""
    if not isinstance(x, Hits):
        raise DtypeError(f"hits are {type(x).__name__}; expected the Hits of a search, or the .hits of an attend")
    ids, bank_rows = ints("hits.ids", x.ids), ints("hits.rows", x.rows)
    shape = ids.shape
    ids = ids[None, None] if ids.ndim == 2 else ids
    if ids.ndim != 4 or ids.shape[1] % heads or bank_rows.shape != ids.shape[:1] or (bank_rows >= n_rows).any():
        raise ShapeError(f"hits of shape {shape} do not come from this bank of {n_rows} rows, {heads} heads")
    return bank_rows, ids


def weights(name: str, x: object, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Take one number per hit, flat; what they may be, the bank says."""
    array = any_array(name, x)
    if array.dtype.kind not in "fiu":
        raise DtypeError(f"{name} is {array.dtype}; expected numbers, as Partial.mass")
    if array.shape != shape:
        raise ShapeError(f"{name} has shape {array.shape}; expected {shape}, one number per hit")
    return np.ascontiguousarray(array, np.float64).reshape(-1)


def ends(name: str, x: int | IntsLike) -> NDArray[np.int64]:
    """Take one id, or one per row."""
    each = x if np.ndim(x) else [x]  # type: ignore[arg-type]
    return np.array([count(name, end, low=0) for end in each], np.int64)  # type: ignore[union-attr]


def ended(ids: IntsLike | None, labels: IntsLike | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take the ids and labels of what is to be deleted."""
    if ids is None and labels is None:
        raise ArgumentError("neither ids nor labels are given: name what is to be deleted")
    none = np.zeros(0, np.int64)
    return (
        none if ids is None else ints("ids", ids).reshape(-1),
        none if labels is None else ints("labels", labels).reshape(-1),
    )


def index(x: IntsLike, n_rows: int) -> NDArray[np.int64]:
    """Take the rows that are to become the rows."""
    numbers = rows("index", x, n_rows)
    if numbers is None:
        raise DtypeError("index=None must be a list of row numbers")
    return numbers
