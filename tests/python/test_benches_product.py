"""Benches of product keys give no figure to a wrong answer. Their engines run with all others in `test_benches`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from benches.cases import Case, Task
    from benches.reference import Truth
    from benches.workloads import Data

    Array = npt.NDArray[Any]
    Solved = tuple[Case, Data, Truth]

ROOT = Path(__file__).parents[2]
GRADIENTS = ["grad_q", "grad_rows", "grad_columns", "grad_v"]


@pytest.fixture(autouse=True)
def _benches_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def problem(task: Task) -> Solved:
    from benches import reference, workloads
    from benches.cases import Case

    case = Case(task=task, lanes=3, entries=32, dim=8, queries=10, k=6, value_dim=5)
    data = workloads.make(case)
    truth = reference.answer(case, data)
    assert truth is not None
    return case, data, truth


def right(truth: Truth) -> dict[str, Array]:
    columns = {"ids": truth.ids, "scores": truth.scores, "out": truth.out, "touched": truth.touched}
    return {name: column for name, column in columns.items() if column is not None} | dict(truth.gradients)


def wrong(solved: Solved, answer: dict[str, Array], *, canonical: bool = False) -> str:
    from benches.check import verdict

    return verdict(*solved, answer, canonical=canonical, approximate=False).wrong or ""


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda ids, scores: (ids * 0 + 32**2, scores), "outside"),
        (lambda ids, scores: (np.repeat(ids[:, :, :1], ids.shape[2], axis=2), scores), "twice"),
        (lambda ids, scores: (ids % 32 * 32 + ids // 32, scores), "missed"),
        (lambda ids, scores: (ids, scores + 0.01), "score is off"),
    ],
)
def test_a_wrong_lookup_is_refused(spoil: Callable[[Array, Array], tuple[Array, Array]], complaint: str) -> None:
    solved = problem("product")
    answer = right(solved[2])
    ids, scores = spoil(answer["ids"], answer["scores"])
    assert not wrong(solved, answer, canonical=True)
    assert complaint in wrong(solved, {"ids": ids, "scores": scores})
    turned = {name: column[:, :, ::-1] for name, column in answer.items()}
    assert not wrong(solved, turned)
    assert "canonical" in wrong(solved, turned, canonical=True)


@pytest.mark.parametrize("name", ["out", *GRADIENTS])
def test_a_wrong_layer_is_refused(name: str) -> None:
    solved = problem("product train")
    answer = right(solved[2])
    assert not wrong(solved, answer)
    assert "is off" in wrong(solved, {**answer, name: answer[name] * 1.001})
    assert wrong(solved, {**answer, name: answer[name] * np.nan})
    if name == "out":
        assert "is off" in wrong(problem("product read"), {name: answer[name] * 1.001})


def test_rows_of_a_gradient_come_in_any_order_and_share() -> None:
    solved = problem("product train")
    answer = right(solved[2])
    rows, ids = answer["grad_v"][::-1], answer["touched"][::-1]
    shared = {"grad_v": np.concatenate([0.25 * rows, 0.75 * rows]), "touched": np.concatenate([ids, ids])}
    assert not wrong(solved, answer | shared)
    assert "grad_v is off" in wrong(solved, answer | shared | {"touched": np.concatenate([ids, ids[::-1]])})
    assert "grad_v is off" in wrong(solved, answer | {"grad_v": rows[:-1], "touched": ids[:-1]})


def test_the_reference_of_a_layer_is_what_small_changes_say() -> None:
    from benches import reference

    case, data, truth = problem("product train")
    assert data.values is not None
    assert truth.touched is not None
    n, slot = case.entries, truth.touched[7]
    row, column = divmod(int(slot), n)
    lane = next(lane for lane, ids in enumerate(truth.ids if truth.ids is not None else ()) if slot in ids)
    places = {
        "grad_q": ("queries", (lane, 4, 3), (lane, 4, 3)),
        "grad_rows": ("keys", (lane, row, 2), (lane, row, 2)),
        "grad_columns": ("keys", (lane, n + column, 2), (lane, column, 2)),
        "grad_v": ("values", (slot, 1), (7, 1)),
    }
    gradient = data.values[-case.queries :]
    for name, (field, place, at) in places.items():
        losses = []
        for change in (-1e-4, 1e-4):
            moved = getattr(data, field).astype(np.float64)
            moved[place] += change
            found = reference.answer(case, dataclasses.replace(data, **{field: moved}))
            assert found is not None
            assert np.array_equal(found.ids, truth.ids), "the best slots stay"
            losses.append((found.out * gradient).sum())
        slope = (losses[1] - losses[0]) / 2e-4
        assert truth.gradients[name][at] == pytest.approx(slope, rel=1e-5, abs=1e-8)
        assert abs(slope) > 1e-3


def test_the_limit_of_a_layer_counts_both_halves_and_the_values_read() -> None:
    from benches.cases import Case
    from benches.limits import _bytes, _operations

    case = Case(task="product", lanes=4, entries=512, dim=64, queries=256, k=32)
    assert _operations(case) == (2 * 2 * 512 * 64 * 256 * 4, 0)
    read = dataclasses.replace(case, task="product read", value_dim=256)
    values = 256 * 4 * 32 * 256 * 4
    assert _bytes(read, key_bytes=4) == values + 4 * (4 * 2 * 64 * (512 + 256) + 256 * 256)
    train = dataclasses.replace(read, task="product train")
    assert _bytes(train, key_bytes=4) == 2 * _bytes(read, key_bytes=4)
    assert _operations(train)[1] > 3 * _operations(read)[1] > 0
