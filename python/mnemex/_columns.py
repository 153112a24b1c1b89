"""Columns at the border: what a bank declares, and the numbers that a call gives for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mnemex import _arguments as arguments
from mnemex.errors import ArgumentError, DtypeError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mnemex._arrays import ArrayLike, IntsLike

    ColumnLike = ArrayLike | IntsLike | list[float] | list[bool]

_LIST_KINDS = {"float32": "fiu", "int64": "iu", "bool": "b"}
"""What a list of Python numbers may hold for a column of each type."""


def declared(columns: object) -> list[tuple[str, str]]:
    """Take the columns that a bank is made with: types by name."""
    if columns is None:
        return []
    if not isinstance(columns, Mapping):
        raise DtypeError(f"columns={columns!r} must map names to types, as in {{'prior': 'float32'}}")
    pairs = []
    for name, dtype in columns.items():
        if not isinstance(name, str):
            raise DtypeError(f"columns name {name!r}; a column's name is a word")
        pairs.append((arguments.text("columns name", name), _dtype(name, dtype)))
    return pairs


def _dtype(name: str, dtype: object) -> str:
    if isinstance(dtype, str):
        return dtype
    try:
        if dtype is not None:  # which numpy takes for float64
            return np.dtype(dtype).name  # type: ignore[call-overload]
    except TypeError:
        pass
    raise DtypeError(f"columns[{name!r}]={dtype!r} must be 'float32', 'int64' or 'bool'")


def given(
    columns: object, known: Mapping[str, str], shape: tuple[int, int], *, one_lane: bool
) -> list[tuple[str, NDArray[Any]]]:
    """Take one number per token, `[rows, T]` (`[T]` for one lane), for columns that the bank declares."""
    if columns is None:
        return []
    if not isinstance(columns, Mapping):
        raise DtypeError(f"columns are {type(columns).__name__}; expected arrays by name, as in {{'prior': array}}")
    arrays = []
    for name, numbers in columns.items():
        if name not in known:
            what = ", ".join(map(repr, known)) or "none"
            raise ArgumentError(
                f"columns name {name!r}; this bank declares {what}: make it with columns={{name: dtype}}"
            )
        array = _numbers(name, numbers, known[name])
        if array.shape != shape and not (one_lane and array.shape == shape[1:]):
            raise ShapeError(f"columns[{name!r}] has shape {array.shape}; expected [rows, T] = {list(shape)}")
        arrays.append((name, np.ascontiguousarray(array.reshape(-1))))
    return arrays


def _numbers(name: str, x: Any, dtype: str) -> NDArray[Any]:  # noqa: ANN401 - whatever the caller has
    """Take numbers of a column's type; an array may be of a narrower one, and a list of any that Python has for it."""
    what = f"columns[{name!r}]"
    array = arguments.any_array(what, x)
    loose = isinstance(x, (list, tuple)) and (array.dtype.kind in _LIST_KINDS[dtype] or array.size == 0)
    if dtype == "int64":
        return arguments.ints(what, array.astype(np.int64) if loose and array.size == 0 else array)
    if not loose and not (array.dtype.name == dtype or (dtype == "float32" and array.dtype.name == "float16")):
        raise DtypeError(f"{what} is {array.dtype}; expected {dtype}: cast with .astype({dtype!r})")
    with np.errstate(over="ignore"):
        numbers = array.astype(dtype)
    if loose and dtype == "float32" and (np.isinf(numbers) & np.isfinite(array.astype(np.float64))).any():
        raise ArgumentError(f"{what} holds a number beyond float32")
    return numbers
