"""Joining two parts of one softmax attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mnemex.errors import DtypeError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def merge(
    out_a: ArrayLike,
    lse_a: ArrayLike,
    out_b: ArrayLike,
    lse_b: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    sink: ArrayLike | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Merge two partial attentions over disjoint entries into the attention over both.

    With L = log(exp lse_a + exp lse_b): out = exp(lse_a - L) out_a + exp(lse_b - L) out_b. Computed in float64; a part
    over nothing (lse = -inf) contributes nothing.

    Parameters
    ----------
    out_a, out_b
        `[..., value_dim]`.
    lse_a, lse_b
        `[...]`, natural logarithms.
    bias
        Added to `lse_b`: a number, or an array that broadcasts to `lse_b`.
    sink
        One more logit without a value, likewise; it counts in the returned log-sum-exp.

    Returns
    -------
    out, lse
        float32, the shapes of `out_a` and `lse_a`.

    Raises
    ------
    ShapeError
        The parts do not fit together.
    DtypeError
        Something is not an array of real numbers.
    """
    a, b = _numbers("out_a", out_a), _numbers("out_b", out_b)
    la, lb = _numbers("lse_a", lse_a), _numbers("lse_b", lse_b)
    if not (a.ndim >= 1 and a.shape == b.shape and la.shape == lb.shape == a.shape[:-1]):
        raise ShapeError(
            f"out_a {a.shape}, lse_a {la.shape}, out_b {b.shape}, lse_b {lb.shape} do not fit: expected out [..., dim] "
            "twice and lse [...] twice"
        )
    if bias is not None:
        lb = lb + _like("bias", bias, lb.shape)
    sides = [la, lb]
    if sink is not None:
        sides.append(_like("sink", sink, la.shape))
    top = np.max(sides, axis=0)
    shift = np.where(np.isneginf(top), 0.0, top)
    shares = [np.exp(side - shift) for side in sides]
    total = sum(shares)
    with np.errstate(divide="ignore"):
        lse = shift + np.log(total)
    safe = np.where(total == 0, 1.0, total)
    weight_a, weight_b = (np.where(share == 0, 0.0, share / safe)[..., None] for share in shares[:2])
    out = np.where(weight_a == 0, 0.0, weight_a * a) + np.where(weight_b == 0, 0.0, weight_b * b)
    return out.astype(np.float32), lse.astype(np.float32)


def _numbers(name: str, x: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(x)
    if array.dtype.kind not in "fiu":
        raise DtypeError(f"{name} is {array.dtype}; expected an array of real numbers")
    return array.astype(np.float64)


def _like(name: str, x: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = _numbers(name, x)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ShapeError(f"{name} has shape {array.shape}, which does not broadcast to {shape}") from None
