"""The native product-key operations, from numpy to numpy: what the torch adapter builds its operators on.

Nothing is decided here. Arrays are contiguous, ids int64, and half precisions travel as their bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mnemex import _native
from mnemex._arrays import ArrayLike, vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mnemex._arrays import Vectors

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]


class LookupGradients(NamedTuple):
    """Gradients of queries `[T, heads, d1 + d2]`, rows `[heads, n1, d1]` and columns `[heads, n2, d2]`, float32."""

    queries: Floats
    rows: Floats
    columns: Floats


class BagGradients(NamedTuple):
    """Gradient of the weights `[T, m]`, and of the rows read: `touched` `[u]`, ascending, and `values` `[u, dv]`."""

    weights: Floats
    touched: Ints
    values: Floats


def lookup(
    rows: Floats, columns: Floats, queries: Floats, k: int, *, threads: int | None = None
) -> tuple[Floats, Ints]:
    """Find the best k of all pairs: scores and ids `[T, heads, k]`, padded with -inf and -1."""
    return _native.product_lookup(rows, columns, queries, k, threads)


def lookup_backward(
    rows: Floats, columns: Floats, queries: Floats, ids: Ints, grad: Floats, *, threads: int | None = None
) -> LookupGradients:
    """Take the gradient of the scores `[T, heads, k]` back to what they were made of."""
    return LookupGradients(*_native.product_backward(rows, columns, queries, ids, grad, threads))


def bag(values: ArrayLike, ids: Ints, weights: Floats, *, threads: int | None = None) -> Floats:
    """Sum rows of `values` `[n, dv]` by weight: `[T, dv]` of ids and weights `[T, m]`; id -1 adds nothing."""
    return _native.bag(_table(values), ids, weights, threads)


def bag_backward(
    values: ArrayLike, ids: Ints, weights: Floats, grad: Floats, *, threads: int | None = None
) -> BagGradients:
    """Take the gradient of the sums `[T, dv]` back to weights and to the rows that were read."""
    return BagGradients(*_native.bag_backward(_table(values), ids, weights, grad, threads))


def _table(values: ArrayLike) -> Vectors:
    array, dtype = vectors("values", values, one_lane=True)
    return array[0, 0], dtype
