"""The benches still run, and give no figure to a wrong answer. How fast anything is, no test asks."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from benches.cases import Case
    from benches.engines import Answer
    from benches.limits import Rate
    from benches.reference import Truth
    from benches.workloads import Data

    Array = npt.NDArray[Any]
    Solved = tuple[Case, Data, Truth]

ROOT = Path(__file__).parents[2]
FIELDS = ["task", "case", "engine", "setting", "version", "threads", "metric", "value", "unit", "recall"]
FIELDS += ["bytes_per_vector", "cpu", "isa", "date", "noisy", "note"]

WRONG_ENGINE = """
from benches.engines import Job
from benches.engines.numpy_flat import search as right

VERSION = "0"

def isa():
    return "none"

def search(problem):
    job = right(problem)

    def run():
        answer = dict(job.run())
        answer["ids"] = (answer["ids"] + 1) % problem.case.entries
        return answer

    return Job(run, job.bytes_per_vector)
"""


@pytest.fixture(autouse=True)
def _benches_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def search_problem() -> Solved:
    from benches import reference, workloads
    from benches.cases import Case

    case = Case(task="search", entries=500, dim=16, queries=20, k=5)
    data = workloads.make(case)
    truth = reference.answer(case, data)
    assert truth is not None
    return case, data, truth


def attend_problem(k: int | None) -> Solved:
    from benches import reference, workloads
    from benches.cases import Case

    case = Case(task="attend" if k else "attend all", lanes=3, entries=200, dim=16, queries=7, k=k, data="shifted")
    data = workloads.make(case)
    truth = reference.answer(case, data)
    assert truth is not None
    return case, data, truth


def right(truth: Truth) -> dict[str, Array]:
    """Give the right answer in the form in which engines give theirs."""
    columns = {"ids": truth.ids, "scores": truth.scores, "out": truth.out, "lse": truth.lse}
    return {name: column for name, column in columns.items() if column is not None}


def wrong(
    case: Case, data: Data, truth: Truth | None, answer: Answer, *, canonical: bool = False, approximate: bool = False
) -> str:
    """Say what is wrong with an answer; nothing if it is right."""
    from benches.check import verdict

    return verdict(case, data, truth, answer, canonical=canonical, approximate=approximate).wrong or ""


def test_the_right_answer_is_accepted() -> None:
    case, data, truth = search_problem()
    assert not wrong(case, data, truth, right(truth), canonical=True)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda ids, scores: (ids[:, :, :-1], scores), "shape"),
        (lambda ids, scores: (ids * 0 - 1, scores), "outside"),
        (lambda ids, scores: (np.repeat(ids[:, :, :1], ids.shape[2], axis=2), scores), "twice"),
        (lambda ids, scores: ((ids + 1) % 500, scores), "missed"),
        (lambda ids, scores: (ids, scores + 0.01), "score is off"),
    ],
)
def test_a_wrong_search_is_refused(spoil: Callable[[Array, Array], tuple[Array, Array]], complaint: str) -> None:
    case, data, truth = search_problem()
    ids, scores = spoil(right(truth)["ids"], right(truth)["scores"])
    assert complaint in wrong(case, data, truth, {"ids": ids, "scores": scores})


def test_the_canonical_order_is_asked_of_those_who_promise_it() -> None:
    case, data, truth = search_problem()
    answer = {name: column[:, :, ::-1] for name, column in right(truth).items()}
    assert not wrong(case, data, truth, answer)
    assert "canonical" in wrong(case, data, truth, answer, canonical=True)


@pytest.mark.parametrize("k", [4, None])
def test_a_wrong_attention_is_refused(k: int | None) -> None:
    case, data, truth = attend_problem(k)
    answer = right(truth)
    out, lse = answer["out"], answer["lse"]
    assert not wrong(case, data, truth, answer)
    assert "output is off" in wrong(case, data, truth, {"out": out * 1.001})
    assert "log-sum-exp" in wrong(case, data, truth, {"out": out, "lse": lse + 0.01})
    assert "finite" in wrong(case, data, truth, {"out": out * np.nan})
    assert not wrong(case, data, truth, {"out": out * 1.001}, approximate=True)
    assert "bfloat16" in wrong(case, data, truth, {"out": out * 1.1}, approximate=True)


def train_problem() -> Solved:
    from benches import reference, workloads
    from benches.cases import Case

    case = Case(task="train", lanes=2, entries=64, dim=8, queries=16, k=4, chunk=16, data="shifted")
    data = workloads.make(case)
    truth = reference.answer(case, data)
    assert truth is not None
    return case, data, truth


@pytest.mark.parametrize("name", ["out", "grad_q", "grad_k", "grad_v"])
def test_a_wrong_training_step_is_refused(name: str) -> None:
    case, data, truth = train_problem()
    answer = {**right(truth), **truth.gradients}
    assert not wrong(case, data, truth, answer)
    assert "is off" in wrong(case, data, truth, {**answer, name: answer[name] * 1.001})
    assert wrong(case, data, truth, {**answer, name: answer[name] * np.nan})


def test_the_reference_of_a_training_step_is_what_small_changes_say() -> None:
    from benches import reference

    case, data, truth = train_problem()
    assert data.values is not None
    for name, array in (("grad_q", data.queries), ("grad_k", data.keys), ("grad_v", data.values)):
        losses = []
        for change in (-1e-3, 1e-3):
            ids = truth.ids
            assert ids is not None
            changed = {"queries": data.queries, "keys": data.keys, "values": data.values}
            field = {"grad_q": "queries", "grad_k": "keys", "grad_v": "values"}[name]
            # The entries are constants: the segment gets rows of its own, in front, and the entries move back.
            n = case.queries
            moved = {
                key: np.concatenate([value[:, :n], value], axis=1).astype(np.float64) if key != "queries" else value
                for key, value in changed.items()
            }
            moved[field] = moved[field].astype(np.float64)
            moved[field][1, 5, 3] += change
            step = reference._step(case, dataclasses.replace(data, **moved), 1, ids[1] + n)
            losses.append((step["out"] * data.values[1, -n:]).sum())
        assert array.shape[2] == case.dim
        slope = (losses[1] - losses[0]) / 2e-3
        assert truth.gradients[name][1, 5, 3] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_write_that_cannot_be_read_back_is_refused() -> None:
    from benches import workloads
    from benches.cases import Case

    case = Case(task="write", lanes=2, entries=10, dim=4, chunk=5)
    data = workloads.make(case)
    assert data.values is not None
    assert not wrong(case, data, None, {"keys": data.keys, "values": data.values})
    assert "values" in wrong(case, data, None, {"keys": data.keys, "values": data.keys})


def test_data_in_bfloat16_are_the_nearest_numbers_that_it_has() -> None:
    from benches import workloads
    from benches.cases import Case

    ml_dtypes = pytest.importorskip("ml_dtypes", reason="numpy has no bfloat16 of its own")
    case = Case(task="attend", lanes=2, entries=100, dim=16, queries=5, k=4)
    drawn, rounded = workloads.make(case), workloads.make(dataclasses.replace(case, dtype="bfloat16"))
    assert drawn.values is not None
    assert rounded.values is not None
    pairs = ((drawn.keys, rounded.keys), (drawn.values, rounded.values), (drawn.queries, rounded.queries))
    for before, after in pairs:
        np.testing.assert_array_equal(after, before.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_an_engine_that_its_library_cannot_do_is_left_out_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benches import measure, run
    from benches.results import read
    from benches.roster import ENGINES

    text = "from benches.engines import Unavailable\nVERSION = '0'\ndef isa(): return 'x'\n"
    (tmp_path / "old_engine.py").write_text(text + "def search(problem): raise Unavailable('too old')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    right = next(engine for engine in ENGINES if engine.library == "numpy")
    old = dataclasses.replace(right, name="old", module="old_engine", function="search", canonical=True)
    monkeypatch.setattr(measure, "ENGINES", (dataclasses.replace(right, ours=True), old))
    monkeypatch.setattr(run, "calibrate", lambda *, quick: rates())

    assert run.main(["--quick", "--case", "search: 2,048 x 32, batch 64", "--folder", str(tmp_path)]) == 0
    records = [record for record in read(next(tmp_path.glob("*.jsonl"))) if record.engine == "old"]
    assert [(record.metric, record.note) for record in records] == [("left out", "too old")]


def test_the_reference_is_softmax_attention_over_the_best_k() -> None:
    _, data, truth = attend_problem(4)
    assert data.values is not None
    assert truth.mass is not None
    keys, values, query = data.keys[1].astype(float), data.values[1].astype(float), data.queries[1, 3].astype(float)
    logits = keys @ query / 4
    best = np.sort(np.argsort(-logits)[:4])
    weights = np.exp(logits[best])
    answer = right(truth)
    np.testing.assert_array_equal(np.sort(answer["ids"][1, 3]), best)
    np.testing.assert_allclose(answer["out"][1, 3], weights @ values[best] / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(answer["lse"][1, 3], np.log(weights.sum()), rtol=1e-12)
    np.testing.assert_allclose(truth.mass[1, 3], weights.sum() / np.exp(logits).sum(), rtol=1e-12)


def test_the_limit_is_the_larger_of_compute_and_bytes() -> None:
    from benches.cases import Case
    from benches.engines import BF16_SCAN, Scan
    from benches.limits import Limits

    limits = Limits(rates())
    narrow = Case(task="search", entries=1 << 21, dim=64, queries=1, k=1)
    wide = dataclasses.replace(narrow, queries=1000)
    found = {
        (case.queries, scan.key_bytes): limits.limit(case, threads=1, scan=scan)
        for case in (narrow, wide)
        for scan in (Scan(), BF16_SCAN, Scan(arithmetic="int8", key_bytes=1))
    }
    seconds = {key: limit.seconds for key, limit in found.items() if limit is not None}
    assert seconds[1, 4] == pytest.approx((1 << 29) / 10e9, rel=1e-3)
    assert seconds[1, 2] == pytest.approx((1 << 28) / limits._read(1 << 28, 1), rel=1e-3)
    assert seconds[1000, 4] == pytest.approx(2000 * (1 << 27) / 100e9)
    assert seconds[1000, 2] == pytest.approx(2000 * (1 << 27) / 200e9)
    assert seconds[1000, 1] == seconds[1000, 4], "no unit for int8 was calibrated"
    binds = {key: limit.binds for key, limit in found.items() if limit is not None}
    assert binds[1, 2] == "reads, 2 bytes a number"
    assert binds[1000, 2] == "avx512 bf16 products"
    held = limits.limit(dataclasses.replace(wide, isa="avx2"), threads=1, scan=Scan())
    assert held is not None
    assert held.seconds == pytest.approx(2000 * (1 << 27) / 50e9)


def rates() -> tuple[Rate, ...]:
    from benches.limits import Rate

    metrics = [("fma_f32", 100.0), ("avx2_f32", 50.0), ("avx512_bf16", 200.0)]
    found = [
        Rate(metric=f"{metric}_loads_stores", isa="x", threads=t, bytes=None, value=value, unit="GFLOP/s")
        for metric, value in metrics
        for t in (1, 2)
    ]
    sizes = [("read", 1 << 20, 80.0), ("read", 1 << 29, 10.0), ("copy", 1 << 26, 10.0)]
    found += [
        Rate(metric=metric, isa="x", threads=threads, bytes=size, value=value, unit="GB/s")
        for metric, size, value in sizes
        for threads in (1, 2)
    ]
    return tuple(found)


@pytest.mark.parametrize("ours", [True, False])
def test_a_wrong_engine_gets_no_figure_from_a_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    from benches import measure, run
    from benches.engines import Engine
    from benches.results import read
    from benches.roster import ENGINES

    (tmp_path / "wrong_engine.py").write_text(WRONG_ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = Engine(
        name="broken", library="numpy", module="wrong_engine", function="search", tasks=("search",), ours=ours
    )
    numpy = next(engine for engine in ENGINES if engine.library == "numpy")
    right = dataclasses.replace(numpy, ours=not ours)
    monkeypatch.setattr(measure, "ENGINES", (broken, right))
    monkeypatch.setattr(run, "calibrate", lambda *, quick: rates())

    status = run.main(["--quick", "--case", "search", "--folder", str(tmp_path)])

    records = [record for record in read(next(tmp_path.glob("*.jsonl"))) if record.engine in ("broken", right.name)]
    figures = {(record.engine, record.metric) for record in records}
    assert status == (1 if ours else 0)
    assert {metric for engine, metric in figures if engine == "broken"} == {"refused"}
    assert (right.name, "seconds") in figures
    assert ((right.name, "ratio") in figures) is not ours
    assert "missed entry" in next(record.note for record in records if record.engine == "broken")
    assert "refused" in (tmp_path / "benchmarks.md").read_text()


def test_losses_stay_on_the_page() -> None:
    from benches.page import page
    from benches.results import Record

    def record(engine: str, metric: str, value: float) -> Record:
        return Record(
            task="search", case="x", engine=engine, threads=1, metric=metric, value=value, unit="", cpu="c", date="d"
        )

    records = [record("mnemex", "seconds", 2.0), record("mnemex", "ratio", 1.0)]
    records += [record("other", "seconds", 1.0), record("other", "ratio", 0.5)]
    records += [record("mnemex, short", "seconds", 0.5), record("mnemex, short", "ratio", 0.25)]
    text = page(records, "x.jsonl")
    assert "| search | x | 1 | mnemex |  | 0.50 | other" in text
    assert "| search | x | 1 | mnemex, short |  | 2.00 | other" in text
    rows = text[text.index("### x") :]
    assert rows.index("| 1 | other |") < rows.index("| 1 | mnemex |")


@pytest.mark.skipif(
    shutil.which("cargo") is None, reason="the calibration is a Rust program and cargo is not installed"
)
def test_the_quick_run_measures_every_task_and_writes_lines_and_page(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benches.run", "--quick", "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()]
    assert all(list(line) == FIELDS for line in lines)
    refused = {line["engine"] for line in lines if line["metric"] == "refused"}
    assert refused <= {"torch bf16 matmul + topk + gather + softmax"}, "whose ids are a matter of luck"
    calibrated = {line["case"] for line in lines if line["task"] == "calibration"}
    assert {"fma_f32_loads_stores 512 KiB", "read 1 MiB", "read 512 MiB", "copy 64 MiB"} <= calibrated
    ours = {line["task"] for line in lines if line["engine"] == "mnemex" and line["metric"] == "seconds"}
    in_torch = {"train", "product read", "product train"} if importlib.util.find_spec("torch") else set()
    assert ours == {"call", "search", "attend", "attend all", "write", "consolidate", "forget", "product"} | in_torch
    peers = {line["engine"] for line in lines if line["metric"] == "ratio"}
    assert "numpy argpartition" in peers
    assert "## mnemex beside the best peer" in (tmp_path / "benchmarks.md").read_text()


def test_who_is_held_to_avx2_is_not_told_of_wider_processors():
    from benches import measure
    from benches.cases import Case

    case = Case(task="search", entries=64, dim=8, queries=4, k=2, isa="avx2")
    tried = measure.contenders(case, only="", settings=True, blas_core="SKYLAKEX")
    cores = {setting.variables["OPENBLAS_CORETYPE"] for _, setting in tried}
    assert cores == {"HASWELL"}
    free = measure.contenders(dataclasses.replace(case, isa=None), only="", settings=True, blas_core="SKYLAKEX")
    assert any(setting.variables.get("OPENBLAS_CORETYPE") == "SKYLAKEX" for _, setting in free)
