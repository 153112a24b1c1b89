"""The right answers, in float64 and plain numpy, independent of every engine that is measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benches.workloads import keys_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benches.cases import Case
    from benches.workloads import Data

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CONSOLIDATED = 0.95
"""Cosine from which a token is merged."""

SCORES_AT_ONCE = 1 << 24
SCORES_CHECKED = 1 << 28


@dataclass(frozen=True)
class Truth:
    """Right answer for the queries `checked` (their positions), the same in every lane.

    `ids` and `scores` are `[lanes, checked, k]` in canonical order: score rounded to float32 descending, then id
    ascending. `gap` is the distance from the last score taken to the first one left out. `out` and `lse` belong to
    attention, `mass` is the share of the whole softmax that the k entries hold. `gradients` belong to training: by
    name, each `[lanes, queries, dim]`. `kept` are the keys and values `[lanes, entries, dim]` after a consolidation,
    those that were there before first, then the new ones as they arrived.

    With product keys `out` is `[1, checked, value_dim]`, gradients are `grad_q` `[lanes, queries, 2 dim]`, `grad_rows`
    and `grad_columns` `[lanes, entries, dim]` of the two halves, and `grad_v` the rows `touched` of that of the values.
    """

    checked: Ints
    ids: Ints | None
    scores: Doubles | None
    gap: Doubles | None
    out: Doubles | None
    lse: Doubles | None
    mass: Doubles | None
    gradients: Mapping[str, Doubles] = field(default_factory=dict)
    touched: Ints | None = None
    kept: Mapping[str, Doubles] = field(default_factory=dict)


class _Part(NamedTuple):
    """The columns of a `Truth` for some of its lanes or queries."""

    ids: Ints | None
    scores: Doubles | None
    gap: Doubles | None
    out: Doubles | None
    lse: Doubles | None
    mass: Doubles | None

    @classmethod
    def joined(cls, parts: Sequence[_Part], join: Callable[..., Any]) -> _Part:
        """Join each column by `np.stack` (lanes) or `np.concatenate` (blocks of queries)."""
        return cls(*(None if column[0] is None else join(column) for column in zip(*parts, strict=True)))


def answer(case: Case, data: Data) -> Truth | None:
    """Solve a case; None for writes, whose right answer is the data."""
    if case.task in ("write", "forget"):
        return None
    if case.task == "consolidate":
        return _consolidated(case, data)
    checked = np.arange(case.queries)
    if case.task == "train":
        return _trained(case, data, checked)
    if case.lanes * case.slots * case.queries > SCORES_CHECKED and case.task != "product train":
        count = max(1, SCORES_CHECKED // (case.lanes * case.slots))
        checked = np.linspace(0, case.queries - 1, count, dtype=np.int64)
    lanes = [_lane(case, data, lane, checked) for lane in range(case.lanes)]
    truth = Truth(checked, *_Part.joined(lanes, np.stack))
    return _layer(case, data, truth) if case.is_product and case.has_values else truth


def _consolidated(case: Case, data: Data) -> Truth:
    """Merge what arrives first into what it is near, and put the rest in the place of the first entries left alone."""
    assert data.values is not None
    kept: dict[str, list[Doubles]] = {"keys": [], "values": []}
    for lane in range(case.lanes):
        old = {"keys": data.keys[lane].astype(np.float64), "values": data.values[lane].astype(np.float64)}
        new = {"keys": data.queries[lane].astype(np.float64), "values": old["values"][-case.chunk :]}
        lengths = [np.linalg.norm(x["keys"], axis=1, keepdims=True) for x in (old, new)]
        cosines = new["keys"] / lengths[1] @ (old["keys"] / lengths[0]).T
        nearest, merged = cosines.argmax(1), cosines.max(1) >= CONSOLIDATED
        counts = np.bincount(nearest[merged], minlength=case.entries)
        stay = np.flatnonzero(counts > 0), np.flatnonzero(counts == 0)[np.count_nonzero(~merged) :]
        for name, lanes in kept.items():
            sums = old[name].copy()
            np.add.at(sums, nearest[merged], new[name][merged])
            means = sums / (1 + counts[:, None])
            lanes.append(np.concatenate([means[np.sort(np.concatenate(stay))], new[name][~merged]]))
    nothing = _Part(None, None, None, None, None, None)
    return Truth(np.arange(0), *nothing, kept={name: np.stack(lanes) for name, lanes in kept.items()})


def _layer(case: Case, data: Data, truth: Truth) -> Truth:
    """Add the values of all heads, weighted by the softmax of each; and the way back, from the last values."""
    ids = truth.ids
    assert data.values is not None
    assert ids is not None
    assert truth.scores is not None
    weights = np.exp(truth.scores - truth.scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    values = data.values[ids].astype(np.float64)  # [lanes, checked, k, value_dim]
    truth = replace(truth, out=np.einsum("lqk,lqkv->qv", weights, values)[None])
    if case.task == "product read":
        return truth
    gradient = data.values[-case.queries :].astype(np.float64)
    back = np.einsum("qv,lqkv->lqk", gradient, values)
    back = weights * (back - np.sum(weights * back, axis=2, keepdims=True))
    keys = np.stack([keys_of(case, data, lane, some) for lane, some in enumerate(ids)])
    gradients = {"grad_q": np.einsum("lqk,lqkd->lqd", back, keys)}
    of_keys = back[..., None] * data.queries[:, :, None].astype(np.float64)
    first = case.entries * np.arange(case.lanes)[:, None, None]
    halves = (ids // case.entries, of_keys[..., : case.dim]), (ids % case.entries, of_keys[..., case.dim :])
    for name, (half, of_half) in zip(("grad_rows", "grad_columns"), halves, strict=True):
        summed = np.zeros((case.lanes * case.entries, case.dim))
        np.add.at(summed, half + first, of_half)
        gradients[name] = summed.reshape(case.lanes, case.entries, case.dim)
    touched, places = np.unique(ids, return_inverse=True)
    gradients["grad_v"] = np.zeros((len(touched), case.value_dim))
    np.add.at(gradients["grad_v"], places.reshape(ids.shape), weights[..., None] * gradient[:, None])
    return replace(truth, gradients=gradients, touched=touched)


def _trained(case: Case, data: Data, checked: Ints) -> Truth:
    """Solve a training step lane by lane; `out` is that of the joint softmax, and there is no `lse`."""
    lanes = [_lane(case, data, lane, checked) for lane in range(case.lanes)]
    steps = [_step(case, data, lane, part.ids) for lane, part in enumerate(lanes) if part.ids is not None]
    found = {name: np.stack([step[name] for step in steps]) for name in ("out", "grad_q", "grad_k", "grad_v")}
    truth = Truth(checked, *_Part.joined(lanes, np.stack))
    return replace(truth, out=found.pop("out"), lse=None, mass=None, gradients=found)


def _step(case: Case, data: Data, lane: int, ids: Ints) -> dict[str, Doubles]:
    """Attend to the segment (its keys are the first entries) and to the entries `ids`; and the way back."""
    assert data.values is not None
    n, scale = case.queries, case.dim**-0.5
    queries, keys, values = (x[lane].astype(np.float64) for x in (data.queries, data.keys, data.values))
    gradient = values[-n:]
    near = np.where(np.tri(n, dtype=bool), scale * queries @ keys[:n].T, -np.inf)
    far = scale * np.einsum("qd,qkd->qk", queries, keys[ids])
    logits = np.concatenate([near, far], axis=1)
    weights = np.exp(logits - _log_sum_exp(logits)[:, None])
    of_near, of_far = weights[:, :n], weights[:, n:]
    out = of_near @ values[:n] + np.einsum("qk,qkd->qd", of_far, values[ids])
    delta = np.sum(gradient * out, axis=1, keepdims=True)
    back_near = scale * of_near * (gradient @ values[:n].T - delta)
    back_far = scale * of_far * (np.einsum("qd,qkd->qk", gradient, values[ids]) - delta)
    return {
        "out": out,
        "grad_q": back_near @ keys[:n] + np.einsum("qk,qkd->qd", back_far, keys[ids]),
        "grad_k": back_near.T @ queries,
        "grad_v": of_near.T @ gradient,
    }


def _lane(case: Case, data: Data, lane: int, checked: Ints) -> _Part:
    keys = data.keys[lane].astype(np.float64)
    values = None if data.values is None or case.is_product else data.values[lane].astype(np.float64)
    blocks = [_block(case, scores, values) for scores in _scores(case, keys, data.queries[lane, checked])]
    return _Part.joined(blocks, np.concatenate)


def _scores(case: Case, keys: Doubles, queries: npt.NDArray[np.float32]) -> Iterator[Doubles]:
    step = max(1, SCORES_AT_ONCE // case.slots)
    for start in range(0, len(queries), step):
        some = queries[start : start + step].astype(np.float64)
        if case.is_product:
            first, second = some[:, : case.dim] @ keys[: case.entries].T, some[:, case.dim :] @ keys[case.entries :].T
            yield (first[:, :, None] + second[:, None]).reshape(len(some), case.slots)
        else:
            yield some @ keys.T


def _block(case: Case, scores: Doubles, values: Doubles | None) -> _Part:
    """Solve one block of queries against one lane."""
    ids, best, gap = (None, None, None) if case.k is None else _best(scores, case.k)
    if values is None:
        return _Part(ids, best, gap, None, None, None)
    scale = case.dim**-0.5
    whole = _log_sum_exp(scale * scores)
    logits = scale * (scores if best is None else best)
    lse = _log_sum_exp(logits)
    weights = np.exp(logits - lse[:, None])
    out = weights @ values if ids is None else np.einsum("qk,qkd->qd", weights, values[ids])
    return _Part(ids, best, gap, out, lse, np.exp(lse - whole))


def _best(scores: Doubles, k: int) -> tuple[Ints, Doubles, Doubles]:
    """Take the k best; a few more are looked at, so that scores equal in float32 are ordered by id."""
    kept = min(k + 8, scores.shape[1])
    ids = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
    best = np.take_along_axis(scores, ids, axis=1)
    order = np.lexsort((ids, -best.astype(np.float32)), axis=1)
    ids, best = np.take_along_axis(ids, order, axis=1), np.take_along_axis(best, order, axis=1)
    gap = best[:, k - 1] - best[:, k] if kept > k else np.full(len(scores), np.inf)
    return ids[:, :k], best[:, :k], gap


def _log_sum_exp(logits: Doubles) -> Doubles:
    top = logits.max(axis=1, keepdims=True)
    result: Doubles = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return result
