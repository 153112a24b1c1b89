"""One case at one number of threads: start every engine, check its answer, then run them in turn, round by round."""

from __future__ import annotations

import importlib.util
import statistics
from dataclasses import asdict, dataclass, field
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from benches import environment
from benches.check import Verdict, verdict
from benches.engines import AVX512_BLAS, ENGINES, HUGE_PAGES, INSTALLED, Engine, Setting
from benches.process import EngineFailed, Process, Processes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benches.cases import Case, Effort
    from benches.reference import Truth
    from benches.workloads import Data

NOISE = 0.1  # processors that others may keep busy
PATIENCE = 20.0  # seconds; an engine whose first round is longer has no other
MEMORY_SHARE = 0.7
PAUSE = 0.02


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a case is measured: `rounds` rounds, each at least `round_seconds` long for every engine."""

    rounds: int = 5
    round_seconds: float = 0.1
    threads: tuple[int, ...] = (1, 2)
    settings: bool = True
    shared: bool = False


PLANS: dict[Effort, Plan] = {
    "quick": Plan(rounds=5, round_seconds=0.0, threads=(2,), settings=False, shared=True),
    "default": Plan(),
    "full": Plan(),
}


@dataclass
class Row:
    """One engine in one setting: its verdict and, where that is good, seconds of each round."""

    engine: Engine
    setting: Setting
    verdict: Verdict
    version: str = ""
    isa: str = ""
    bytes_per_vector: float | None = None
    seconds: list[float] = field(default_factory=list)
    ratio: float | None = None
    noisy: bool = False

    @property
    def median(self) -> float:
        """Median of the rounds, seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest minus fastest round, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All rows of a case at one number of threads."""

    case: Case
    threads: int
    rows: Sequence[Row]


def contenders(case: Case, *, only: str, settings: bool, avx512_blas: bool) -> list[tuple[Engine, Setting]]:
    """Engines for a case, ours first, each with every setting worth trying; `only` is a part of the peers' names."""
    chosen = [engine for engine in ENGINES if case.task in engine.tasks and (engine.ours or only in engine.name)]
    pairs = []
    for engine in chosen:
        tried = engine.settings if settings else (INSTALLED,)
        if settings and avx512_blas and engine.library == "faiss":
            both = Setting(
                name=f"{AVX512_BLAS.name}, {HUGE_PAGES.name}",
                variables={**AVX512_BLAS.variables, **HUGE_PAGES.variables},
            )
            tried = (*tried, AVX512_BLAS, both)
        pairs += [(engine, setting) for setting in tried]
    return pairs


def missing(engines: Iterable[Engine]) -> list[str]:
    """Libraries that are not installed here."""
    libraries = {engine.library: importlib.util.find_spec(engine.library) is not None for engine in engines}
    return [library for library, found in libraries.items() if not found]


def measure(
    case: Case,
    data: Data,
    *,
    truth: Truth | None,
    pairs: Sequence[tuple[Engine, Setting]],
    plan: Plan,
    threads: int,
    folder: Path,
    processes: Processes,
) -> Measured:
    """Measure all contenders; ours again in each group where memory does not hold all of them at once."""
    ours: Row | None = None
    rows: list[Row] = []
    for group in _groups(case, pairs):
        fresh = _Group(case, data, truth, plan, threads, folder, processes).run(group)
        own = next((row for row in fresh if row.engine.ours), None)
        for row in fresh:
            if own is not None and own.seconds and row.seconds:
                row.ratio = row.median / own.median
        if ours is not None and own is not None:
            ours.seconds += own.seconds
            fresh.remove(own)
        ours = ours or own
        rows += fresh
    return Measured(case=case, threads=threads, rows=rows)


def _groups(case: Case, pairs: Sequence[tuple[Engine, Setting]]) -> list[list[tuple[Engine, Setting]]]:
    """Split contenders so that the data of each group fits in memory; ours is in every group."""
    room = MEMORY_SHARE * environment.free_memory()
    ours = [pair for pair in pairs if pair[0].ours]
    base = sum(engine.copies * case.nbytes for engine, _ in ours)
    groups, used = [list(ours)], base
    for pair in pairs:
        if pair[0].ours:
            continue
        more = pair[0].copies * case.nbytes
        if used + more > room and len(groups[-1]) > len(ours):
            groups.append(list(ours))
            used = base
        groups[-1].append(pair)
        used += more
    return groups


@dataclass
class _Group:
    """Engines that are measured side by side."""

    case: Case
    data: Data
    truth: Truth | None
    plan: Plan
    threads: int
    folder: Path
    processes: Processes

    def run(self, pairs: Sequence[tuple[Engine, Setting]]) -> list[Row]:
        started = [(pair, self.processes.start(*pair, threads=self.threads)) for pair in pairs]
        for number, ((engine, _), process) in enumerate(started):
            process.send("prepare", **self._request(engine, number))
        checked = [self._checked(pair, process, number) for number, (pair, process) in enumerate(started)]
        alive = [(row, process) for row, process in checked if process is not None]
        self._rounds([(row, process) for row, process in alive if row.verdict.wrong is None])
        for row, process in alive:
            process.ask("forget", job=row.engine.key)
            self.processes.release(process)
        return [row for row, _ in checked]

    def _request(self, engine: Engine, number: int) -> dict[str, Any]:
        return {
            "job": engine.key,
            "module": engine.module,
            "function": engine.function,
            "case": asdict(self.case),
            "folder": str(self.folder),
            "answer": str(self._answer(number)),
            "threads": self.threads,
            "round_seconds": self.plan.round_seconds,
        }

    def _answer(self, number: int) -> Path:
        return self.folder / f"answer-{number}.npz"

    def _checked(self, pair: tuple[Engine, Setting], process: Process, number: int) -> tuple[Row, Process | None]:
        """Read an engine's first answer and compare it with the truth; without an answer the process is ended."""
        engine, setting = pair
        try:
            reply = process.receive()
        except EngineFailed as failed:
            self.processes.release(process, failed=True)
            return Row(engine, setting, Verdict(wrong=f"failed: {failed}")), None
        with np.load(self._answer(number), allow_pickle=False) as answer:
            found = {name: answer[name] for name in answer.files}
        self._answer(number).unlink()
        judged = Verdict(wrong=None)
        if engine.same or self.truth is None:  # what was written can be read back whatever else differs
            judged = verdict(
                self.case, self.data, self.truth, found, canonical=engine.canonical, approximate=engine.approximate
            )
        return Row(engine, setting, judged, **reply), process

    def _rounds(self, ready: Sequence[tuple[Row, Process]]) -> None:
        """Run every engine once per round, in turn."""
        numbers = environment.processors(self.threads)
        for _, process in ready:
            process.ask("pin", processors=numbers)
        bystanders = environment.Bystanders([process.number for _, process in ready])
        start = perf_counter()
        for turn in range(self.plan.rounds):
            for row, process in ready:
                if turn == 0 or row.seconds[0] <= PATIENCE:
                    sleep(PAUSE)  # idle threads of the engine before this one spin for some milliseconds
                    row.seconds.append(process.ask("time", job=row.engine.key)["seconds"])
        others = bystanders.processors(perf_counter() - start)
        for row, _ in ready:
            row.noisy = others is not None and others > NOISE
