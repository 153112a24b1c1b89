"""docs/benchmarks.md, made from a results file and nothing else: `python -m benches.page FILE`."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from benches.results import TWO_ROUNDS, Record, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

INTRODUCTION = """\
# Benchmarks

Made by `make bench` from `{source}`; not edited by hand. How the figures are taken: every engine runs in a process
of its own, pinned to the same processors, after its answer was compared with one computed in float64; an engine
whose answer is wrong is refused and gets no figure. Rounds are interleaved, times are medians over them, and the
spread is slowest minus fastest round as a share of the median. Peers are tried with each setting that may help them.

*Ratio* is the time of an engine divided by the time of mnemex: above 1 mnemex is faster, below 1 it loses. *Share of
limit* is what the calibrated hardware would need, divided by what was needed; the f32 limit is meant where an
engine scores in float32, the bf16 limit where it uses bfloat16 products. mnemex stands beside the f32 limit
everywhere, and passes 100 % where the processor has AMX: it then looks at bfloat16 products first and rescores
exactly. *Recall* is against the float64 answer; *error* is |out - right| / |right|, for a
training step the largest of the output's and the gradients', *mass* the share of the whole
softmax that the k entries hold. *Bytes* are per entry and count everything an engine keeps for it, values included.
"""

FIGURES = ("ratio", "share of limit", "time", "spread", "throughput", "recall", "error", "mass", "bytes")

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
    """One line per case and number of threads; the best peer is the fastest one whose answer is exact."""
    lines = [
        "| task | case | threads | ratio | best exact peer | share of f32 limit | mnemex |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for (task, case), records in measured.items():
        if task in ABOUT_THE_MACHINE:
            continue
        rows = _rows(records)
        for threads in sorted({key[0] for key in rows}):
            same = {key[1:]: row for key, row in rows.items() if key[0] == threads}
            lines.append(f"| {task} | {case} | {threads} | {_outcome(same)} |")
    return "\n".join([*lines, ""])


def _outcome(rows: Mapping[tuple[str, str], Row]) -> str:
    """Cells of the summary: ratio, best exact peer, share of the limit, time."""
    ours = next((row for (engine, _), row in rows.items() if engine == "mnemex"), {})
    if "seconds" not in ours:
        return f" | | | {'refused: ' + ours['refused'].note if 'refused' in ours else 'not measured'}"
    peers = [row for (engine, _), row in rows.items() if engine != "mnemex" and _comparable(row)]
    cells = [_share(ours), _time(_value(ours, "seconds"))]
    if not peers:
        return " | ".join(["", "none", *cells])
    best = min(peers, key=lambda row: _value(row, "ratio"))["ratio"]
    return " | ".join([f"{best.value:.2f}", f"{best.engine} ({best.setting})", *cells])


def _comparable(row: Row) -> bool:
    return "ratio" in row and row["ratio"].note in ("", TWO_ROUNDS)


def table(records: Iterable[Record]) -> str:
    """All rows of one case, fastest first; refused rows last."""
    records = list(records)
    lines = [_limits(records), "", f"| threads | engine | setting | {' | '.join(FIGURES)} | |"]
    lines.append("| ---: | --- | --- |" + " ---: |" * len(FIGURES) + " --- |")
    rows = _rows(records)
    for key in sorted(rows, key=lambda key: (key[0], _value(rows[key], "seconds"))):
        threads, engine, setting = key
        row = rows[key]
        first = next(iter(row.values()))
        cells = [
            f"{_value(row, 'ratio'):.2f}" if "ratio" in row else "",
            _share(row),
            _time(_value(row, "seconds")) if "seconds" in row else "refused",
            f"{_value(row, 'spread'):.0%}" if "spread" in row else "",
            f"{_value(row, 'throughput'):,.0f} {row['throughput'].unit}" if "throughput" in row else "",
            "" if first.recall is None else f"{first.recall:.4f}",
            f"{_value(row, 'out_error'):.1e}" if "out_error" in row else "",
            f"{_value(row, 'mass'):.3f}" if "mass" in row else "",
            "" if first.bytes_per_vector is None else f"{first.bytes_per_vector:.1f}",
        ]
        note = ", ".join(part for part in (first.note, "noisy" if first.noisy else "") if part)
        lines.append(f"| {threads} | {engine} | {setting} | {' | '.join(cells)} | {note} |")
    return "\n".join([*lines, ""])


def _limits(records: Sequence[Record]) -> str:
    parts = [
        f"{record.metric.removeprefix('limit_')} on {record.threads} thread(s): {_time(record.value or 0.0)}"
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
    for limit in ("f32", "bf16"):
        if f"share_of_{limit}_limit" in row:
            return f"{_value(row, f'share_of_{limit}_limit'):.0%}{'' if limit == 'f32' else ' (bf16)'}"
    return ""


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
