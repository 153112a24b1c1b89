"""Whether an engine's answer is right, and by how much it is off. Wrong answers get no figures.

Tolerances follow from float32 arithmetic. A sum of d products may be off by d * 2**-24 * |q| |x|; two entries
whose scores differ by less than twice that count as tied, and an engine may take either. Attention outputs may be
off by 1e-5 plus 2.4e-7 times the largest logit, relative to the largest output; queries whose last place is tied
are left out of that. The gradients of a training step sum over queries, tied ones too, each of which may move them
by the weight of one entry of k: together they may be off by `GRADIENT_ERROR`, relative. The gradient of a table of
values may come as rows in any order, and more than one of an id, which then count together. What is left after a
consolidation may be off by `KEPT_ERROR` of the largest number: means of two to a few numbers in float32. An engine that
computes in bfloat16 and says so is allowed `BF16_ERROR`, and never counts as the best peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benches.workloads import keys_of

if TYPE_CHECKING:
    from benches.cases import Case
    from benches.engines import Answer
    from benches.reference import Truth
    from benches.workloads import Data

BF16_ERROR = 2e-2
GRADIENT_ERROR = 1e-4
KEPT_ERROR = 1e-6


@dataclass(frozen=True)
class Verdict:
    """`wrong` says what is wrong, or None. The rest are figures to report, None where they do not apply."""

    wrong: str | None
    recall: float | None = None
    out_error: float | None = None
    lse_error: float | None = None
    mass: float | None = None


def verdict(
    case: Case, data: Data, truth: Truth | None, answer: Answer, *, canonical: bool, approximate: bool
) -> Verdict:
    """Compare an answer with the truth; `canonical` also asks for the contract's order of ids."""
    if truth is None:
        return _written(data, answer)
    if truth.kept:
        return _kept(truth, answer)
    if case.task in ("call", "search", "product"):
        return _searched(case, data, truth, answer, canonical=canonical)
    return _attended(case, data, truth, answer, approximate=approximate)


def _written(data: Data, answer: Answer) -> Verdict:
    assert data.values is not None
    for name, expected in (("keys", data.keys), ("values", data.values)):
        if name in answer and not np.array_equal(answer[name], expected):
            return Verdict(wrong=f"the {name} read back are not the {name} written")
    return Verdict(wrong=None)


def _kept(truth: Truth, answer: Answer) -> Verdict:
    for name, expected in truth.kept.items():
        if answer[name].shape != expected.shape:
            return Verdict(wrong=f"{name} have shape {answer[name].shape}, expected {expected.shape}")
        off = float(np.abs(answer[name].astype(np.float64) - expected).max())
        if not off <= KEPT_ERROR * np.abs(expected).max():
            return Verdict(wrong=f"the {name} that are left are off by {off:.2g}")
    return Verdict(wrong=None)


def _rounding(case: Case, data: Data, truth: Truth) -> npt.NDArray[np.float64]:
    """Bound of the error of a float32 score, per lane and checked query."""
    squares = np.einsum("lnd,lnd->ln", data.keys, data.keys, dtype=np.float64)
    longest = np.sqrt(squares.reshape(case.lanes, -1, case.entries).max(axis=2).sum(axis=1))  # halves in turn
    queries = np.linalg.norm(data.queries[:, truth.checked].astype(np.float64), axis=2)
    bound: npt.NDArray[np.float64] = data.queries.shape[2] * 2.0**-24 * longest[:, None] * queries
    return bound


def _recall(ids: npt.NDArray[np.int64], expected: npt.NDArray[np.int64]) -> float:
    rows = zip(ids.reshape(-1, ids.shape[-1]), expected.reshape(-1, expected.shape[-1]), strict=True)
    return float(np.mean([np.isin(row, right).mean() for row, right in rows]))


def _searched(case: Case, data: Data, truth: Truth, answer: Answer, *, canonical: bool) -> Verdict:
    assert truth.ids is not None
    assert truth.scores is not None
    assert case.k is not None
    shape = (case.lanes, case.queries, case.k)
    if answer["ids"].shape != shape:
        return Verdict(wrong=f"ids have shape {answer['ids'].shape}, expected {shape}")
    ids = answer["ids"][:, truth.checked].astype(np.int64)
    if ids.min() < 0 or ids.max() >= case.slots:
        return Verdict(wrong=f"an id is outside 0..{case.slots - 1}")
    recall = _recall(ids, truth.ids)
    if canonical and not np.array_equal(ids, truth.ids):
        return Verdict(wrong=f"{np.mean(ids != truth.ids):.2%} of the ids are not the canonical ones", recall=recall)
    ordered = np.sort(ids, axis=2)
    if case.k > 1 and (ordered[..., 1:] == ordered[..., :-1]).any():
        return Verdict(wrong="an entry is returned twice for one query", recall=recall)
    bound = _rounding(case, data, truth)[..., None]
    scores = _true_scores(case, data, truth, ids)
    short = truth.scores[..., -1:] - scores.min(axis=2, keepdims=True)
    if (short > 2 * bound).any():
        return Verdict(
            wrong=f"a missed entry scores {short.max():.3g} more than one taken (recall {recall:.4f})", recall=recall
        )
    off = np.abs(answer["scores"][:, truth.checked].astype(np.float64) - scores)
    if (off > bound + 2.0**-23 * np.abs(scores)).any():
        return Verdict(wrong=f"a score is off by {off.max():.3g}", recall=recall)
    return Verdict(wrong=None, recall=recall)


def _true_scores(case: Case, data: Data, truth: Truth, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    scores = np.empty(ids.shape)
    for lane in range(case.lanes):
        for row, query in enumerate(data.queries[lane, truth.checked].astype(np.float64)):
            scores[lane, row] = keys_of(case, data, lane, ids[lane, row]) @ query
    return scores


def _attended(case: Case, data: Data, truth: Truth, answer: Answer, *, approximate: bool) -> Verdict:
    assert truth.out is not None
    out = answer["out"][:, truth.checked].astype(np.float64)
    if out.shape != truth.out.shape:
        return Verdict(wrong=f"out has shape {out.shape}, expected {truth.out.shape}")
    if not np.isfinite(out).all():
        return Verdict(wrong="out is not finite")
    off = out - truth.out
    error = float(np.linalg.norm(off) / np.linalg.norm(truth.out))
    for name, right in truth.gradients.items():
        of_gradient = float(np.linalg.norm(_off(truth, answer, name)) / np.linalg.norm(right))
        if not of_gradient <= GRADIENT_ERROR:
            return Verdict(f"{name} is off by {of_gradient:.2g}, relative; {GRADIENT_ERROR:g} is allowed")
        error = max(error, of_gradient)
    recall, mass = None, None
    if "ids" in answer and truth.ids is not None:
        ids = answer["ids"][:, truth.checked].astype(np.int64)
        recall = _recall(ids, truth.ids)
        mass = None if truth.mass is None else _mass(case, data, truth, ids)
    lse = None
    if "lse" in answer and truth.lse is not None:
        lse = float(np.abs(answer["lse"][:, truth.checked].astype(np.float64) - truth.lse).max())
    if approximate:
        wrong = f"relative output error {error:.2g}, more than bfloat16 explains" if error > BF16_ERROR else None
        return Verdict(wrong, recall, error, lse, mass)
    settled = np.ones(out.shape[:2], dtype=bool)
    bound = _rounding(case, data, truth)
    if truth.gap is not None:
        settled = truth.gap > 2 * bound
    if case.is_product:  # one output for all heads
        settled = np.atleast_2d(settled.all(axis=0))
    largest = _largest_logit(case, data, truth)
    allowed = 1e-5 + 2.4e-7 * largest
    worst = np.abs(off).max(axis=2)[settled].max(initial=0.0) / np.abs(truth.out).max()
    if worst > allowed:
        return Verdict(
            f"an output is off by {worst:.2g} of the largest, {allowed:.2g} is allowed", recall, error, lse, mass
        )
    if lse is not None and lse > allowed * max(1.0, largest):
        return Verdict(f"a log-sum-exp is off by {lse:.2g}", recall, error, lse, mass)
    return Verdict(None, recall, error, lse, mass)


def _off(truth: Truth, answer: Answer, name: str) -> npt.NDArray[np.float64]:
    """How far a gradient is off; rows of one id are added up first, wherever only some ids have rows."""
    found, right = answer[name].astype(np.float64), truth.gradients[name]
    if truth.touched is None or name != "grad_v":
        return found - right
    ids, places = np.unique(np.concatenate([truth.touched, answer["touched"]]), return_inverse=True)
    off = np.zeros((len(ids), right.shape[1]))
    np.add.at(off, places, np.concatenate([-right, found]))
    return off


def _largest_logit(case: Case, data: Data, truth: Truth) -> float:
    """Bound of the largest logit."""
    if truth.lse is not None:
        return float(np.abs(truth.lse).max() + np.log(case.entries))
    assert truth.scores is not None
    if case.is_product:
        return float(np.abs(truth.scores).max())
    local = np.einsum("lqd,lkd->lqk", data.queries, data.keys[:, : case.queries])
    return float(case.dim**-0.5 * max(np.abs(truth.scores).max(), np.abs(local).max()))


def _mass(case: Case, data: Data, truth: Truth, ids: npt.NDArray[np.int64]) -> float:
    """Mean share of the whole softmax that the returned entries hold."""
    assert truth.lse is not None
    assert truth.mass is not None
    whole = truth.lse - np.log(truth.mass)
    logits = case.dim**-0.5 * _true_scores(case, data, truth, ids)
    return float(np.exp(logits - whole[..., None]).sum(axis=2).mean())
