"""One case: start every engine, check its answers, then run the engines in turn, round by round."""

from __future__ import annotations

import importlib.util
import statistics
from dataclasses import asdict, dataclass, field
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from benches import environment
from benches.check import Verdict, verdict
from benches.engines import F32_SCAN, HELD, INSTALLED, Engine, Scan, Setting, blas
from benches.process import EngineFailed, Process, Processes
from benches.roster import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benches.cases import Case, Effort
    from benches.reference import Truth
    from benches.workloads import Data

NOISE = 0.1  # processors that others may keep busy
MEMORY_SHARE = 0.7
PAUSE = 0.02


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a case is measured.

    Every engine runs `rounds` rounds of at least `round_seconds` at each number of `threads`, but only two if both
    are longer than `patience` seconds. Without `settings` the engines run as installed; `shared` is for runs
    whose figures nobody keeps.
    """

    rounds: int = 5
    round_seconds: float = 0.1
    threads: tuple[int, ...] = (1, 2)
    settings: bool = True
    shared: bool = False
    patience: float = 2.5


PLANS: dict[Effort, Plan] = {
    "quick": Plan(rounds=5, round_seconds=0.0, threads=(2,), settings=False, shared=True),
    "default": Plan(),
    "full": Plan(patience=30.0),
}


@dataclass
class Row:
    """One engine in one setting: its verdict and, where that is good, seconds of each round.

    `unavailable` says why an engine did not take part.
    """

    engine: Engine
    setting: Setting
    verdict: Verdict
    version: str = ""
    isa: str = ""
    bytes_per_vector: float | None = None
    scan: Scan = F32_SCAN
    remark: str = ""
    unavailable: str = ""
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


def contenders(case: Case, *, only: str, settings: bool, blas_core: str | None) -> list[tuple[Engine, Setting]]:
    """Engines for a case, ours first, each with every setting worth trying; `only` is a part of the peers' names.

    `blas_core` is another processor that faiss's OpenBLAS should take this one for, where it is not held to less.
    """
    chosen = [engine for engine in ENGINES if engine.takes(case) and (engine.ours or only in engine.name)]
    pairs = []
    for engine in chosen:
        held = INSTALLED if case.isa is None else HELD[case.isa]
        tried = [setting & held for setting in (engine.settings if settings else (INSTALLED,))]
        core = None if case.isa == "avx2" else blas_core
        if settings and engine.blas and core not in (None, held.variables.get("OPENBLAS_CORETYPE")):
            tried.append(tried[-1] & blas(core))
        pairs += [(engine, setting) for setting in tried]
    return pairs


def missing(engines: Iterable[Engine]) -> list[str]:
    """Libraries that are not installed here."""
    needed = dict.fromkeys(library for engine in engines for library in engine.libraries)
    return [library for library in needed if importlib.util.find_spec(library) is None]


def measure(
    case: Case,
    data: Data,
    *,
    truth: Truth | None,
    pairs: Sequence[tuple[Engine, Setting]],
    plan: Plan,
    folder: Path,
    processes: Processes,
) -> list[Measured]:
    """Measure all contenders; ours again in each group where memory does not hold all of them at once."""
    rows: dict[int, list[Row]] = {threads: [] for threads in plan.threads}
    for group in _groups(case, pairs):
        for threads, fresh in _Group(case, data, truth, plan, folder, processes).run(group).items():
            own = next((row for row in fresh if row.engine.ours), None)
            for row in fresh:
                if own is not None and own.seconds and row.seconds:
                    row.ratio = row.median / own.median
            known = next((row for row in rows[threads] if row.engine.ours), None)
            if known is not None and own is not None:
                known.seconds += own.seconds
                fresh.remove(own)
            rows[threads] += fresh
    return [Measured(case=case, threads=threads, rows=found) for threads, found in rows.items()]


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
class _Contender:
    """An engine in a setting, and the process that runs it; a library takes seconds to import, so it is kept."""

    engine: Engine
    setting: Setting
    process: Process | None = None


@dataclass
class _Group:
    """Engines that are measured side by side."""

    case: Case
    data: Data
    truth: Truth | None
    plan: Plan
    folder: Path
    processes: Processes

    def run(self, pairs: Sequence[tuple[Engine, Setting]]) -> dict[int, list[Row]]:
        """Measure at each number of threads."""
        contenders = [_Contender(*pair) for pair in pairs]
        found = {}
        for threads in self.plan.threads:
            for contender in contenders:
                self._start(contender, threads)
            found[threads] = self._side_by_side(contenders, threads)
        for contender in contenders:
            self._stop(contender)
        return found

    def _start(self, contender: _Contender, threads: int) -> None:
        engine, setting = contender.engine, contender.setting
        if engine.restart:
            self._stop(contender)
        if contender.process is None:
            most = threads if engine.restart else max(self.plan.threads)
            contender.process = self.processes.start(engine, setting, threads=most)

    def _stop(self, contender: _Contender, *, failed: bool = False) -> None:
        if contender.process is not None:
            self.processes.release(contender.process, failed=failed)
            contender.process = None

    def _side_by_side(self, contenders: Sequence[_Contender], threads: int) -> list[Row]:
        for number, contender in enumerate(contenders):
            assert contender.process is not None
            contender.process.send("prepare", **self._request(contender.engine, number, threads))
        rows = [self._checked(contender, number) for number, contender in enumerate(contenders)]
        alive = [(row, contender.process) for row, contender in zip(rows, contenders, strict=True) if contender.process]
        self._rounds(
            [(row, process) for row, process in alive if row.verdict.wrong is None and not row.unavailable], threads
        )
        for row, process in alive:
            process.ask("forget", job=row.engine.key)
        return rows

    def _request(self, engine: Engine, number: int, threads: int) -> dict[str, Any]:
        return {
            "job": engine.key,
            "module": engine.module,
            "function": engine.function,
            "case": asdict(self.case),
            "folder": str(self.folder),
            "answer": str(self._answer(number)),
            "threads": threads,
            "round_seconds": self.plan.round_seconds,
        }

    def _answer(self, number: int) -> Path:
        return self.folder / f"answer-{number}.npz"

    def _checked(self, contender: _Contender, number: int) -> Row:
        """Read an engine's first answer and compare it with the truth; without an answer the process is ended."""
        engine, setting = contender.engine, contender.setting
        assert contender.process is not None
        try:
            reply = contender.process.receive()
        except EngineFailed as failed:
            self._stop(contender, failed=True)
            return Row(engine, setting, Verdict(wrong=f"failed: {failed}"))
        if "unavailable" in reply:
            return Row(engine, setting, Verdict(wrong=None), **reply)
        with np.load(self._answer(number), allow_pickle=False) as answer:
            found = {name: answer[name] for name in answer.files}
        self._answer(number).unlink()
        judged = Verdict(wrong=None)
        if engine.same or self.truth is None:  # what was written can be read back whatever else differs
            judged = verdict(
                self.case, self.data, self.truth, found, canonical=engine.canonical, approximate=engine.approximate
            )
        return Row(engine, setting, judged, scan=Scan(**reply.pop("scan")), **reply)

    def _rounds(self, ready: Sequence[tuple[Row, Process]], threads: int) -> None:
        """Run every engine once per round, in turn."""
        numbers = environment.processors(threads)
        for _, process in ready:
            process.ask("pin", processors=numbers)
        bystanders = environment.Bystanders([process.number for _, process in ready])
        start = perf_counter()
        for turn in range(self.plan.rounds):
            for row, process in ready:
                if turn < 2 or min(row.seconds) <= self.plan.patience:
                    sleep(PAUSE)  # idle threads of the engine before this one spin for some milliseconds
                    row.seconds.append(process.ask("time", job=row.engine.key)["seconds"])
        others = bystanders.processors(perf_counter() - start)
        for row, _ in ready:
            row.noisy = others is not None and others > NOISE
