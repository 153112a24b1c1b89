"""docs/benchmarks.md, made from a results file and nothing else: `python -m benches.page FILE`."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from benches.results import SHARE, TWO_ROUNDS, Record, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

INTRODUCTION = """\
# Benchmarks

Made by `make bench` from `{source}`; not edited by hand. How the figures are taken: every engine runs in a process
of its own, pinned to the same processors, after its answer was compared with one computed in float64; an engine
whose answer is wrong is refused and gets no figure. Rounds are interleaved, times are medians over them, and the
spread is slowest minus fastest round as a share of the median. Peers are tried with each setting that may help them.

*Ratio* is the time of an engine divided by the time of mnemex: above 1 mnemex is faster, below 1 it loses. *Share of
the limit* is what the calibrated hardware would need, divided by what was needed; the larger of two times is the
limit, and it is said which: operations at the rate of a loop with loads and stores, in the arithmetic in which the
engine looks at all keys (float32; bfloat16 in AMX or AVX-512; int8), or bytes really read at the rate of reading.
mnemex looks at products of bytes or of bfloat16 first where the processor is faster at these, and reads two bytes of a
number of a key (one of an int8 copy); without selection it computes in float32. Cases "held to" an instruction set
tell every engine to use none wider, and leave out those that cannot be told. *Recall* is against the float64 answer;
*error* is |out - right| / |right|, for a training step the largest of the output's and the gradients', *mass* the
share of the whole softmax that the k entries hold. *Bytes* are per entry and count everything an engine keeps for it,
values included; with product keys an entry is a slot, a pair of half keys, and training looks at the gradients of
queries, half keys and the rows of values that were read.
"""

FIGURES = ("ratio", "share of the limit", "time", "spread", "throughput", "recall", "error", "mass", "bytes")

ABOUT_THE_MACHINE = ("environment", "calibration")

Key = tuple[int, str, str]
Row = dict[str, Record]


def page(records: Sequence[Record], source: str) -> str:
    """Whole page as markdown."""
    cases = by_case(records)
    facts = {case: lines for (task, case), lines in cases.items() if task == "environment"}
    rates = {case: lines for (task, case), lines in cases.items() if task == "calibration"}
    measured = {key: lines for key, lines in cases.items() if key[0] not in ABOUT_THE_MACHINE}
    parts = [
        INTRODUCTION.format(source=source),
        "## Machine\n",
        _facts(records[0], facts),
        "## Limits of the hardware\n",
        _rates(rates),
    ]
    parts += ["## mnemex beside the best peer of each case\n", summary(measured)]
    task = ""
    for key, lines in measured.items():
        if key[0] != task:
            task = key[0]
            parts.append(f"## {task[0].upper()}{task[1:]}\n")
        parts.append(f"### {key[1]}\n\n{table(lines)}")
    return "\n".join(parts)


def by_case(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Group records by task and case, in order of appearance."""
    cases: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        cases[record.task, record.case].append(record)
    return cases


def _facts(first: Record, facts: Mapping[str, Sequence[Record]]) -> str:
    lines = [f"| processor | {first.cpu} |", "| --- | --- |"]
    lines += [f"| {name} | {found[0].note} |" for name, found in facts.items()]
    return "\n".join([*lines, f"| date | {first.date} |", ""])


def _rates(rates: Mapping[str, Sequence[Record]]) -> str:
    lines = ["| rate | instruction set | 1 thread | 2 threads |", "| --- | --- | ---: | ---: |"]
    for name, found in rates.items():
        values = {record.threads: f"{record.value:,.1f} {record.unit}" for record in found}
        lines.append(f"| {name.replace('_', ' ')} | {found[0].isa} | {values.get(1, '')} | {values.get(2, '')} |")
    return "\n".join([*lines, ""])


def summary(measured: Mapping[tuple[str, str], Sequence[Record]]) -> str:
    """One line per case, number of threads and form of mnemex; the best peer is the fastest whose answer is exact."""
    lines = [
        "| task | case | threads | engine | isa | ratio | best exact peer | share of the limit | time |",
        "| --- | --- | ---: | --- | --- | ---: | --- | --- | ---: |",
    ]
    for (task, case), records in measured.items():
        if task in ABOUT_THE_MACHINE:
            continue
        rows = _rows(records)
        for threads in sorted({key[0] for key in rows}):
            same = {key[1:]: row for key, row in rows.items() if key[0] == threads}
            own = [key for key in same if _is_mnemex(key[0])]
            lines += [f"| {task} | {case} | {threads} | {key[0]} | {_outcome(same[key], same)} |" for key in own]
    return "\n".join([*lines, ""])


def _is_mnemex(engine: str) -> bool:
    return engine.partition(",")[0] == "mnemex"


def _outcome(ours: Row, rows: Mapping[tuple[str, str], Row]) -> str:
    """Cells of the summary: instruction set, ratio, best exact peer, share of the limit, time."""
    isa = next(iter(ours.values())).isa
    if "seconds" not in ours:
        return " | ".join([isa, "", "", "", _missing(ours)])
    peers = [row for (engine, _), row in rows.items() if not _is_mnemex(engine) and _comparable(row)]
    cells = [_share(ours), _time(_value(ours, "seconds"))]
    if not peers or "ratio" not in ours:
        return " | ".join([isa, "", "none", *cells])
    best = min(peers, key=lambda row: _value(row, "ratio"))
    name = next(iter(best.values()))
    ratio = _value(best, "ratio") / _value(ours, "ratio")
    return " | ".join([isa, f"{ratio:.2f}", f"{name.engine} ({name.setting})", *cells])


def _missing(row: Row) -> str:
    """Say that a row was refused or left out, and why."""
    return next((f"{word}: {row[word].note}" for word in ("refused", "left out") if word in row), "not measured")


def _comparable(row: Row) -> bool:
    return "ratio" in row and row["ratio"].note in ("", TWO_ROUNDS)


def table(records: Iterable[Record]) -> str:
    """All rows of one case, fastest first; refused rows last."""
    records = list(records)
    lines = [_limits(records), "", f"| threads | engine | setting | isa | {' | '.join(FIGURES)} | |"]
    lines.append("| ---: | --- | --- | --- |" + " ---: |" * len(FIGURES) + " --- |")
    rows = _rows(records)
    for key in sorted(rows, key=lambda key: (key[0], _value(rows[key], "seconds"))):
        threads, engine, setting = key
        row = rows[key]
        first = next(iter(row.values()))
        cells = [
            f"{_value(row, 'ratio'):.2f}" if "ratio" in row else "",
            _share(row),
            _time(_value(row, "seconds")) if "seconds" in row else _missing(row).partition(":")[0],
            f"{_value(row, 'spread'):.0%}" if "spread" in row else "",
            f"{_value(row, 'throughput'):,.0f} {row['throughput'].unit}" if "throughput" in row else "",
            "" if first.recall is None else f"{first.recall:.4f}",
            f"{_value(row, 'out_error'):.1e}" if "out_error" in row else "",
            f"{_value(row, 'mass'):.3f}" if "mass" in row else "",
            "" if first.bytes_per_vector is None else f"{first.bytes_per_vector:.1f}",
        ]
        note = ", ".join(part for part in (first.note, "noisy" if first.noisy else "") if part)
        lines.append(f"| {threads} | {engine} | {setting} | {first.isa} | {' | '.join(cells)} | {note} |")
    return "\n".join([*lines, ""])


def _limits(records: Sequence[Record]) -> str:
    parts = [
        f"{record.setting}, on {record.threads} thread(s): {_time(record.value or 0.0)} ({record.note})"
        for record in records
        if record.engine == "hardware"
    ]
    return f"Limits: {'; '.join(parts)}." if parts else "No hardware limit is stated for this case."


def _rows(records: Iterable[Record]) -> dict[Key, Row]:
    rows: dict[Key, Row] = defaultdict(dict)
    for record in records:
        if record.engine != "hardware":
            rows[record.threads, record.engine, record.setting][record.metric] = record
    return rows


def _value(row: Row | None, metric: str) -> float:
    record = row.get(metric) if row else None
    return float("inf") if record is None or record.value is None else record.value


def _share(row: Row) -> str:
    if SHARE not in row:
        return ""
    return f"{_value(row, SHARE):.0%} ({row[SHARE].unit.removeprefix('of the limit: ')})"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds * 1e6:.3g} us"


def write(results: Path, target: Path) -> None:
    """Make the page from a results file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(read(results), f"benches/results/{results.name}"))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(__file__).parent.parent / "docs" / "benchmarks.md")
