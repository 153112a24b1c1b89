"""How many entries lanes may hold, where heads or layers differ: what `capacity=` takes, and a published schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnemex import _arguments as arguments
from mnemex.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["pyramid"]


def pyramid(n_layers: int, mean: int, *, window: int = 64, beta: float = 20.0) -> tuple[int, ...]:
    """Share one budget of entries among layers: much for the first ones, little for the last (PyramidKV).

    The schedule of Cai et al. 2024, arXiv 2406.02069: beside the last `window` tokens, which every layer keeps, the
    capacity falls linearly with depth, from 2 (mean - window) - least down to least = (mean - window) / beta. So

        Memory.for_model(model, capacity=mx.pyramid(30, 256), evict=mx.AttentionMass(window=64, pool=5, recent=64))

    Exact: the ends, the line between them, and the budget. This project's own reading: the published program rounds
    the step between layers down, which loses part of the budget; here layers are rounded in pairs, from both ends, so
    that they sum to n_layers * mean.

    Parameters
    ----------
    n_layers
        Layers, the first one first.
    mean
        Entries per lane, on average over the layers.
    window
        Entries of these that every layer keeps for its newest tokens: pin them with `recent=window`.
    beta
        At least 1. How steep: 1 gives every layer the same.

    Returns
    -------
    capacities
        Entries per lane of each layer, never rising; `Memory.for_model(capacity=)` takes them, and `[number] * heads`
        of `Bank(capacity=)` likewise where heads are to be told apart.

    Raises
    ------
    ArgumentError, DtypeError
        Numbers that cannot be, or so small a mean that the last layer would keep nothing beside the window.
    """
    n = arguments.count("n_layers", n_layers)
    mean = arguments.count("mean", mean)
    window = arguments.count("window", window, low=0)
    if arguments.real("beta", beta) < 1:
        raise ArgumentError(f"beta={beta!r} must be at least 1")
    beyond = mean - window
    least = beyond / beta
    if n > 1 and least < 1:
        raise ArgumentError(
            f"mean={mean} leaves the last layer {max(least, 0):.3g} entries beside the window of {window}; expected "
            f"1 or more: mean={window + int(np.ceil(beta))}, for one"
        )
    if n == 1:
        return (mean,)
    step = (2 * beyond - 2 * least) / (n - 1)
    upper = [int(2 * beyond - least - at * step) for at in range(n // 2)]
    middle = [beyond] * (n % 2)
    return tuple(window + entries for entries in [*upper, *middle, *(2 * beyond - entries for entries in upper[::-1])])


def of_heads(capacity: object, heads: int) -> int | list[int] | None:
    """Take a number for every lane, a number for each head, or None."""
    if not _is_listed(capacity):
        return arguments.optional_count("capacity", capacity)
    each = [arguments.count(f"capacity[{head}]", entries) for head, entries in enumerate(_items(capacity))]
    if len(each) != heads:
        raise ShapeError(
            f"capacity has {len(each)} numbers for heads={heads}: give one per head, or one for all of them"
        )
    return each


def of_layers(capacity: object, layers: Iterable[int]) -> dict[int, Any]:
    """Take what `Bank(capacity=)` takes, once for all layers or once for each, ascending."""
    ordered = sorted(layers)
    if not _is_listed(capacity):
        return dict.fromkeys(ordered, capacity)
    each = _items(capacity)
    if len(each) != len(ordered):
        raise ShapeError(
            f"capacity has {len(each)} items for {len(ordered)} layers, {ordered}: give one per layer, each a number, "
            "None or a list with one per head; or one number for all"
        )
    return dict(zip(ordered, each, strict=True))


def _is_listed(capacity: object) -> bool:
    if isinstance(capacity, np.ndarray):
        return capacity.ndim > 0
    return isinstance(capacity, Sequence) and not isinstance(capacity, (str, bytes))


def _items(capacity: Any) -> list[Any]:  # noqa: ANN401 - a sequence or an array, checked before
    return list(capacity)
