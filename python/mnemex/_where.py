"""`where`: ids, bitmaps by id, or conditions on columns, as the native module takes them. It evaluates them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mnemex import _arguments as arguments
from mnemex.errors import ArgumentError, DtypeError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mnemex._arrays import IntsLike

    Condition = tuple[str, str, object]
    Where = IntsLike | Condition | Sequence[Condition]
    Parsed = tuple[NDArray[np.bool_] | None, list[tuple[str, str, NDArray[Any]]]]

OPERATORS = ("<", "<=", ">", ">=", "==", "!=", "in")
_EXPECTED = "expected a list of ids, a bitmap by id, (column, operator, value), or a list of such"


def parse(where: object) -> Parsed:
    """Take a `where` apart: bitmaps by id `[1 or rows, n]`, if it is one, and conditions, all of which must hold."""
    if where is None:
        return None, []
    if isinstance(where, (str, bytes)):
        raise DtypeError(f"where={where!r}: {_EXPECTED}")
    if isinstance(where, tuple) and where and isinstance(where[0], str):
        return None, [_condition(where)]
    if isinstance(where, (list, tuple)) and any(_names_a_column(part) for part in where):
        return None, [_condition(part) for part in where]
    array = arguments.any_array("where", where)
    if array.dtype == bool:
        if array.ndim not in (1, 2):
            raise ShapeError(f"where has shape {array.shape}; expected a bitmap by id, [n] or [rows, n]")
        return np.ascontiguousarray(np.atleast_2d(array)), []
    ids = arguments.ints("where", where)  # type: ignore[arg-type]
    if ids.ndim != 1:
        raise ShapeError(f"where has shape {ids.shape}; expected a list of ids")
    return None, [("id", "in", ids)]


def _names_a_column(part: object) -> bool:
    return isinstance(part, (tuple, list)) and len(part) > 0 and isinstance(part[0], str)


def _condition(part: object) -> tuple[str, str, NDArray[Any]]:
    if not isinstance(part, (tuple, list)) or len(part) != 3 or not isinstance(part[0], str):
        raise ArgumentError(f"where holds {part!r}; expected (column, operator, value)")
    column, operator, value = part
    column = arguments.text("where column", column)
    if not isinstance(operator, str) or operator not in OPERATORS:
        raise ArgumentError(f"where compares {column!r} by {operator!r}; expected one of {' '.join(OPERATORS)}")
    if operator == "in":
        return column, operator, _several(column, value)
    return column, operator, _one(column, value)


def _one(column: str, value: object) -> NDArray[Any]:
    """Take one number: a bool, a whole number of 64 bits, or a float."""
    array = arguments.any_array("where", value)
    _within(column, array)
    if array.ndim or array.dtype.kind not in "biuf":
        raise DtypeError(f"where compares {column!r} with {value!r}; expected one number, or True or False")
    return _numbers(column, array.reshape(1))


def _several(column: str, values: Any) -> NDArray[Any]:  # noqa: ANN401 - whatever can be listed
    """Take any number of numbers of one kind."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise DtypeError(f"where compares {column!r} with {values!r}; 'in' takes a list of numbers")
    array = arguments.any_array("where", values if hasattr(values, "dtype") else list(values))
    _within(column, array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biuf"):
        raise DtypeError(f"where compares {column!r} with {values!r}; 'in' takes a list of numbers")
    if array.dtype.kind == "f" and not hasattr(values, "dtype"):
        _exact(column, values)
    return _numbers(column, array) if array.size else np.zeros(0, np.int64)


def _exact(column: str, values: Any) -> None:  # noqa: ANN401
    """Refuse whole numbers that would be rounded, since they stand beside floats."""
    for x in values:
        if isinstance(x, (int, np.integer)) and int(float(x)) != int(x):
            raise ArgumentError(
                f"where compares {column!r} with {x!r} and with floats; beyond 2**53 give whole numbers alone"
            )


def _within(column: str, array: NDArray[Any]) -> None:
    """Refuse whole numbers that numpy has no type for."""
    if array.dtype == object:
        for x in array.reshape(-1):
            if isinstance(x, int) and not -arguments.INT64_MAX - 1 <= x <= arguments.INT64_MAX:
                raise ArgumentError(f"where compares {column!r} with {x}, which is beyond int64")


def _numbers(column: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "b":
        return np.ascontiguousarray(array)
    if array.dtype.kind == "f":
        return np.ascontiguousarray(array, np.float64)
    if array.dtype.kind == "u" and int(array.max()) > arguments.INT64_MAX:
        raise ArgumentError(f"where compares {column!r} with {int(array.max())}, which is beyond int64")
    return np.ascontiguousarray(array, np.int64)
