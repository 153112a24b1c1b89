"""One JSON object per line and figure: what was measured, on what, and how good the answer was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from benches.cases import Case
    from benches.limits import Limits, Rate
    from benches.measure import Measured, Row

TWO_ROUNDS = "two rounds"
SHARE = "share_of_limit"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all lines of one run share."""

    cpu: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One figure.

    `recall` and `bytes_per_vector` describe the engine's answer and storage and are the same for all figures of a
    row. `noisy` rows were measured while something else used the processors. `note` says why there is no figure,
    or what is special about it.
    """

    task: str
    case: str
    engine: str
    setting: str = ""
    version: str = ""
    threads: int = 0
    metric: str
    value: float | None
    unit: str
    recall: float | None = None
    bytes_per_vector: float | None = None
    cpu: str
    isa: str = ""
    date: str
    noisy: bool = False
    note: str = ""


def of_environment(run: Run, facts: dict[str, str]) -> Iterator[Record]:
    """Versions, loads and choices that are words rather than figures."""
    for name, fact in facts.items():
        yield Record(
            task="environment",
            case=name,
            engine="",
            metric="fact",
            value=None,
            unit="",
            note=fact,
            cpu=run.cpu,
            date=run.date,
        )


def of_calibration(run: Run, rates: Iterable[Rate]) -> Iterator[Record]:
    """Calibrated rates."""
    for rate in rates:
        case = rate.metric if rate.bytes is None else f"{rate.metric} {_size(rate.bytes)}"
        yield Record(
            task="calibration",
            case=case,
            engine="hardware",
            threads=rate.threads,
            metric="rate",
            value=rate.value,
            unit=rate.unit,
            cpu=run.cpu,
            isa=rate.isa,
            date=run.date,
        )


def of_measured(run: Run, measured: Measured, limits: Limits) -> Iterator[Record]:
    """Limits of a case, one for each way of looking at the keys, then everything known about each row."""
    case, threads = measured.case, measured.threads
    for scan in dict.fromkeys(row.scan for row in measured.rows if row.seconds and row.engine.same):
        limit = limits.limit(case, threads=threads, scan=scan)
        if limit is not None:
            yield Record(
                task=case.task,
                case=case.name,
                engine="hardware",
                setting=f"{scan.arithmetic}, {scan.key_bytes} bytes a number",
                threads=threads,
                metric="limit",
                value=limit.seconds,
                unit="s",
                cpu=run.cpu,
                date=run.date,
                note=limit.binds,
            )
    for row in measured.rows:
        for metric, value, unit in _figures(case, threads, row, limits):
            yield Record(
                task=case.task,
                case=case.name,
                engine=row.engine.name,
                setting=row.setting.name,
                version=row.version,
                threads=threads,
                metric=metric,
                value=value,
                unit=unit,
                recall=row.verdict.recall,
                bytes_per_vector=row.bytes_per_vector,
                cpu=run.cpu,
                isa=row.isa,
                date=run.date,
                noisy=row.noisy and bool(row.seconds),
                note=_note(row),
            )


def _note(row: Row) -> str:
    if row.unavailable:
        return row.unavailable
    if row.verdict.wrong is not None:
        return row.verdict.wrong
    notes = [row.remark] if row.remark else []
    if not row.engine.same:
        notes.append("not the same work, for context")
    if row.engine.approximate:
        notes.append("bf16 result")
    if len(row.seconds) == 2:
        notes.append(TWO_ROUNDS)
    return ", ".join(notes)


def _figures(case: Case, threads: int, row: Row, limits: Limits) -> Iterator[tuple[str, float | None, str]]:
    """Metric, value and unit; a row that was refused or left out has one line and no figure."""
    if row.unavailable:
        yield "left out", None, ""
        return
    if not row.seconds:
        yield "refused", None, ""
        return
    yield "seconds", row.median, "s"
    yield "spread", row.spread, "of the median"
    unit, amount = "queries/s", case.lanes * case.queries
    if case.is_write:
        unit, amount = "vectors/s", case.lanes * (case.entries if case.task == "write" else case.chunk)
    elif case.task == "product read":
        amount = case.queries
    elif case.task in ("train", "product train"):
        unit, amount = "tokens/s", case.queries
    yield "throughput", amount / row.median, unit
    if row.ratio is not None:
        yield "ratio", row.ratio, "x the time of mnemex"
    limit = limits.limit(case, threads=threads, scan=row.scan)
    if limit is not None and row.engine.same:
        yield SHARE, limit.seconds / row.median, f"of the limit: {limit.binds}"
    judged = row.verdict
    for metric, value, unit in (
        ("out_error", judged.out_error, "relative"),
        ("lse_error", judged.lse_error, "nat"),
        ("mass", judged.mass, "of the softmax"),
    ):
        if value is not None:
            yield metric, value, unit


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


class Lines:
    """A results file while it grows; it stands under `path` only when the run is over, and under .tmp until then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unfinished = path.with_suffix(".tmp")

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished.write_text("")
        return self

    def add(self, records: Iterable[Record]) -> None:
        """Append records, so that a run that is broken off leaves what it has measured."""
        with self._unfinished.open("a") as file:
            file.writelines(json.dumps(asdict(record)) + "\n" for record in records)

    def replace(self, records: Iterable[Record]) -> None:
        """Put these records in the place of all that were added."""
        self._unfinished.write_text("")
        self.add(records)

    def __exit__(self, broken: type[BaseException] | None, *_: object) -> None:
        if broken is None:
            self._unfinished.replace(self.path)


def read(path: Path) -> list[Record]:
    """Read a results file."""
    return [Record(**json.loads(line)) for line in path.read_text().splitlines()]
