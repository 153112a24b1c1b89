"""Arguments of the adapters, checked where a user gives them: each error names the argument and what was given."""

from __future__ import annotations

import math
import operator

from torch import Tensor

from mnemex.errors import ArgumentError, DtypeError
from mnemex.parts import Reader

LARGEST = 2**63 - 1


def count(name: str, x: object, *, low: int = 1) -> int:
    """Take a whole number of at least `low`."""
    try:
        n = operator.index(x)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DtypeError(f"{name}={x!r}: expected a whole number of at least {low}") from None
    if isinstance(x, bool) or not low <= n <= LARGEST:
        raise ArgumentError(f"{name}={x!r}: expected a whole number from {low} to 2**63 - 1")
    return n


def top_k(x: object) -> int | Reader | None:
    """Take a number of entries, a reader, or None for every entry."""
    if isinstance(x, Reader):
        return x
    try:
        return None if x is None else count("top_k", x)
    except (ArgumentError, DtypeError) as error:
        raise type(error)(f"{error}, or a reader such as mnemex.Window, or None for every entry") from None


def real(name: str, x: object) -> float:
    """Take a finite number."""
    try:
        y = float(x)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DtypeError(f"{name}={x!r}: expected a number") from None
    if not math.isfinite(y):
        raise ArgumentError(f"{name}={x!r}: expected a finite number")
    return y


def flag(name: str, x: object) -> bool:
    """Take True or False."""
    if not isinstance(x, bool):
        raise DtypeError(f"{name}={x!r}: expected True or False")
    return x


def tensor(name: str, x: object, shape: str) -> Tensor:
    """Take a tensor; `shape` says of which."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{name} is a {type(x).__name__}: expected a tensor {shape}")
    return x
