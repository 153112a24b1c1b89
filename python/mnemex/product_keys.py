"""Product keys: millions of slots, each with a value, looked up by pairs of half keys without a scan.

Parameters of a model, not a memory: arrays in, arrays out, nothing written. `mnemex.torch.ProductKeyMemory` trains
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnemex import _arguments as arguments
from mnemex import _arrays, _native
from mnemex.errors import ArgumentError, FormatError, NonFinite, NotFoundError, ShapeError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mnemex._arrays import Array, ArrayLike

_FILE_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_MOST_SLOTS = 2**63 - 1
_MOST_VALUES = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """The best slots of each query, best first: larger score, then smaller id. Unpacks as `scores, ids = slots`.

    Attributes
    ----------
    scores
        float32 `[T, heads, k]` (`[T, k]` for queries of one head without that axis); -inf where there is no slot.
    ids
        int64, same shape: slot i * m + j has the i-th half key of the first n and the j-th of the second m; -1 where
        there is none.
    """

    scores: NDArray[np.float32]
    ids: NDArray[np.int64]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Whether there is a slot, same shape as `ids`."""
        return self.ids >= 0

    def __iter__(self) -> Iterator[NDArray[np.float32] | NDArray[np.int64]]:
        return iter((self.scores, self.ids))


class ProductKeys:
    """The keys and values of a product-key memory (Lample et al. 2019, arXiv 1907.05242).

    A slot's key is a pair of half keys, one of n and one of m; its score is the sum of the inner products of both with
    the halves of the query. The best k of the n m slots are found exactly, ties by id, from the best of each half.

    Parameters
    ----------
    sub_keys
        `[heads, 2, n, half]`, or a pair of arrays `[heads, n, first]` and `[heads, m, second]` where halves differ;
        without `heads` for one head. Contiguous float32 halves are read in place, also when they change; others are
        copied once, as halves in one array of several heads are.
    values
        `[n_values, value_dim]` in float32, float16 or bfloat16, one table for all heads, of at most 2**31 - 1 rows;
        with fewer than slots, slot s has row s modulo `n_values`. Or a file of them, which is mapped, not read: it may
        be larger than memory, and what is truncated while it is in use ends the process. None: no values.
    value_dim, value_dtype, n_values
        What a file that does not say so itself holds: numbers per value, "float32", "float16" or "bfloat16"
        (little-endian, row by row), and rows (None: as many as there are slots). A `.npy` file says so itself.
    nonfinite
        "raise", or "keep": a query with NaN or infinity has no slots, a half key with one is never found.
    threads
        At most so many; None: as many as the process may use.

    Raises
    ------
    ShapeError, DtypeError, NonFinite, ArgumentError
        A wrong argument.
    FormatError, NotFoundError
        A file that is not there, or of the wrong size.
    """

    def __init__(
        self,
        sub_keys: ArrayLike | Sequence[ArrayLike],
        values: ArrayLike | str | PathLike[str] | None = None,
        *,
        value_dim: int | None = None,
        value_dtype: str = "float32",
        n_values: int | None = None,
        nonfinite: str = "raise",
        threads: int | None = None,
    ) -> None:
        self._nonfinite = arguments.word("nonfinite", nonfinite, ("raise", "keep"))
        self._threads = arguments.optional_count("threads", threads)
        self._rows, self._columns = _halves(sub_keys)
        for half in (self._rows, self._columns):
            if nonfinite == "raise" and not np.isfinite(half).all():
                raise NonFinite("sub_keys hold NaN or infinity; nonfinite='keep' lets them, and never finds those keys")
        self._values: tuple[Array, str] | None
        if isinstance(values, (str, PathLike)):
            self._values = _mapped(Path(values), self.n_slots, value_dim, value_dtype, n_values)
        else:
            if (value_dim, value_dtype, n_values) != (None, "float32", None):
                raise ArgumentError("value_dim, value_dtype and n_values are for files; an array says so itself")
            self._values = None if values is None else _table(values)
        most = min(self.n_slots, _MOST_VALUES)
        if self._values is not None and not 0 < len(self._values[0]) <= most:
            raise ShapeError(f"{len(self._values[0])} values for {self.n_slots} slots: expected 1 to {most}")

    @property
    def heads(self) -> int:
        """Heads, each with half keys of its own."""
        return len(self._rows)

    @property
    def n_keys(self) -> tuple[int, int]:
        """Half keys of the first and of the second half."""
        return self._rows.shape[1], self._columns.shape[1]

    @property
    def key_dim(self) -> int:
        """Numbers per query: both halves."""
        return self._rows.shape[2] + self._columns.shape[2]

    @property
    def n_slots(self) -> int:
        """Slots of each head."""
        n, m = self.n_keys
        return n * m

    @property
    def n_values(self) -> int:
        """Rows of the table of values; 0 without."""
        return 0 if self._values is None else len(self._values[0])

    @property
    def value_dim(self) -> int | None:
        """Numbers per value; None without values."""
        return None if self._values is None else self._values[0].shape[1]

    def __repr__(self) -> str:
        n, m = self.n_keys
        held = (
            "no values" if self._values is None else f"{self.n_values:,} values of {self.value_dim} {self._values[1]}"
        )
        return f"ProductKeys({self.heads} x {n:,} x {m:,} slots, key_dim={self.key_dim}, {held})"

    def lookup(self, queries: ArrayLike, k: int, *, threads: int | None = None) -> Slots:
        """Find the `k` best slots of each query, exactly.

        A score is the sum of two float64 sums, each in the order that `Bank.search` documents, rounded once to float32:
        the same bits on every machine and for every thread count.

        Parameters
        ----------
        queries
            `[T, heads, key_dim]`, or `[T, key_dim]` with one head.
        k
            Slots per query and head; more than there are gives padding.
        threads
            For this call.

        Raises
        ------
        ShapeError, DtypeError, NonFinite, ArgumentError
            A wrong argument, or an answer of more than 2**31 slots.
        """
        q, flat = self._queries(queries)
        threads = arguments.optional_count("threads", threads)
        scores, ids = _native.product_lookup(
            self._rows, self._columns, q, arguments.count("k", k), threads or self._threads
        )
        return Slots(scores[:, 0], ids[:, 0]) if flat else Slots(scores, ids)

    def read(
        self,
        queries: ArrayLike,
        k: int,
        *,
        softmax: bool = True,
        scale: float = 1.0,
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Sum the values of the `k` best slots of each query, weighed, over all heads.

        Parameters
        ----------
        queries, k, threads
            As `lookup` takes them.
        softmax
            Weights are the softmax of the scaled scores of a head's k slots; False: the scaled scores themselves.
        scale
            What scores are multiplied by first; the published layer has 1. Scores that leave float32's range give NaN.

        Returns
        -------
        NDArray[np.float32]
            `[T, value_dim]`: float32 sums in the order of heads and slots, the same bits for every thread count. A head
            without a slot adds nothing.

        Raises
        ------
        StateError
            There are no values.
        ShapeError, DtypeError, NonFinite, ArgumentError
            As `lookup`.
        """
        if self._values is None:
            raise StateError("these product keys have no values to read: give values=, or use lookup")
        scale, softmax = arguments.real("scale", scale), arguments.flag("softmax", softmax)
        q, _ = self._queries(queries)
        threads = arguments.optional_count("threads", threads) or self._threads
        return _native.product_read(
            self._rows, self._columns, q, arguments.count("k", k), self._values, softmax, scale, threads
        )

    def _queries(self, queries: ArrayLike) -> tuple[NDArray[np.float32], bool]:
        q = _arrays.floats("queries", queries)
        flat = q.ndim == 2 and self.heads == 1
        shape = (len(q) if q.ndim else 0, self.heads, self.key_dim)
        if q.shape != (shape if not flat else (shape[0], self.key_dim)):
            also = f" or [T, {self.key_dim}]" if self.heads == 1 else ""
            raise ShapeError(f"queries have shape {q.shape}; expected [T, {self.heads}, {self.key_dim}]{also}")
        if self._nonfinite == "raise" and not np.isfinite(q).all():
            raise NonFinite("queries hold NaN or infinity; nonfinite='keep' lets them, and finds no slots for those")
        return np.ascontiguousarray(q.reshape(shape)), flat


def _halves(sub_keys: ArrayLike | Sequence[ArrayLike]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    pair = isinstance(sub_keys, (tuple, list))
    if pair and len(sub_keys) != 2:  # type: ignore[arg-type]
        raise ShapeError(f"sub_keys are {len(sub_keys)} arrays; expected two")  # type: ignore[arg-type]
    if pair:
        halves = [_arrays.floats("sub_keys", half) for half in sub_keys]  # type: ignore[union-attr]
    else:
        both = _arrays.floats("sub_keys", sub_keys)  # type: ignore[arg-type]
        both = both[None] if both.ndim == 3 else both
        if both.ndim != 4 or both.shape[1] != 2:
            raise ShapeError(f"sub_keys have shape {both.shape}; expected [heads, 2, n, half], or a pair of arrays")
        halves = [both[:, 0], both[:, 1]]
    rows, columns = (half[None] if half.ndim == 2 else half for half in halves)
    if rows.ndim != 3 or columns.ndim != 3 or len(rows) != len(columns) or 0 in rows.shape + columns.shape:
        raise ShapeError(
            f"sub_keys have shapes {rows.shape} and {columns.shape}; expected [heads, n, first] and "
            "[heads, m, second], none of them empty"
        )
    if rows.shape[1] * columns.shape[1] > _MOST_SLOTS:
        raise ShapeError(f"{rows.shape[1]} x {columns.shape[1]} sub_keys make more than 2**63 slots: take fewer")
    return np.ascontiguousarray(rows), np.ascontiguousarray(columns)


def _table(values: ArrayLike) -> tuple[Array, str]:
    array, dtype = _arrays.any_shape("values", values)
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(f"values have shape {array.shape}; expected [n_values, value_dim], not empty")
    return (array if array.flags.c_contiguous else array.copy()), dtype


def _mapped(
    path: Path, n_slots: int, value_dim: int | None, value_dtype: str, n_values: int | None
) -> tuple[Array, str]:
    """Map a file of values."""
    if not path.is_file():
        raise NotFoundError(f"values={str(path)!r}: no such file")
    if path.suffix == ".npy":
        if value_dim is not None or n_values is not None:
            raise ArgumentError("value_dim and n_values are for files that do not say so themselves; a .npy file does")
        try:
            kept: NDArray[Any] = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise FormatError(f"values={str(path)!r} cannot be mapped as a .npy file of numbers: {error}") from error
        if not (kept.flags.c_contiguous and kept.dtype.isnative):
            raise FormatError(
                f"values={str(path)!r} does not lie row by row in this machine's byte order: save it anew"
            )
        return _table(kept)
    if value_dim is None:
        raise ArgumentError(f"values={str(path)!r} does not say how long a value is: give value_dim=")
    width = arguments.count("value_dim", value_dim)
    rows = n_slots if n_values is None else arguments.count("n_values", n_values)
    dtype = _FILE_TYPES[arguments.word("value_dtype", value_dtype, tuple(_FILE_TYPES))]
    expected, size = rows * width * dtype.itemsize, path.stat().st_size
    if size != expected:
        raise FormatError(
            f"values={str(path)!r} has {size:,} bytes; {rows:,} values of {width} {value_dtype} take {expected:,}: "
            "say what it holds with value_dim=, value_dtype= and n_values="
        )
    array: NDArray[Any] = np.memmap(path, dtype, "r", shape=(rows, width))
    return (array.view(np.uint16) if dtype.itemsize == 2 else array), _NAMES[value_dtype]
