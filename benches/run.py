"""`python -m benches.run`: calibrate, measure case after case, write JSON lines and docs/benchmarks.md.

Exit status 1 means that mnemex gave a wrong answer somewhere, or none; the page then says where.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benches import environment, page, reference, results, workloads
from benches.cases import CASES, Case, Effort
from benches.limits import Limits, best_of, calibrate
from benches.measure import PLANS, Measured, Plan, contenders, measure, missing
from benches.process import ROOT, Processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.engines import Engine, Setting


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _options(arguments)
    effort: Effort = "quick" if options.quick else "full" if options.full else "default"
    began = datetime.now(UTC)
    run = results.Run(cpu=environment.cpu_name(), date=began.isoformat(timespec="seconds"))
    load = environment.load_average()
    cases = [case for case in CASES[effort] if options.case in f"{case.task}: {case.name}"]
    if not cases:
        raise SystemExit(f"no case of the {effort} run has {options.case!r} in its name; --list shows them")
    if options.list:
        print("\n".join(f"{case.task}: {case.name}" for case in cases))
        return 0
    _say(f"{run.cpu}; load average {load:.2f}{'' if load <= environment.QUIET_LOAD else ': every row is marked noisy'}")
    blas = environment.faiss_blas_core() if effort != "quick" else None
    facts = list(results.of_environment(run, _facts(effort, load, blas)))
    limits = Limits(calibrate(quick=options.quick))
    for case in (case for case in cases if case.isa and not environment.can_be_held(case.isa)):
        _say(f"{case.task}: {case.name}: left out, since this processor lacks {case.isa}")
    cases = [case for case in cases if case.isa is None or environment.can_be_held(case.isa)]
    _say(_printed([*facts, *results.of_calibration(run, limits.rates)]))
    plan = PLANS[effort]
    partial = options.quick or bool(options.case or options.engine)
    folder = options.folder or (ROOT / "target" / "benches" if partial else ROOT / "benches" / "results")
    everything: list[Measured] = []
    with results.Lines(folder / f"{began.date().isoformat()}.jsonl") as lines:
        with Processes(shared=plan.shared) as processes:
            for case in cases:
                pairs = _contenders(case, plan, only=options.engine, blas=blas)
                if not any(engine.ours for engine, _ in pairs):
                    continue
                measured = _measured(case, plan, pairs, processes)
                for row in (row for some in measured for row in some.rows):
                    row.noisy = row.noisy or load > environment.QUIET_LOAD
                found = [record for some in measured for record in results.of_measured(run, some, limits)]
                lines.add(found)
                _say(page.table(found))
                everything += measured
        limits = Limits(best_of(limits.rates, calibrate(quick=options.quick)))
        records = [*facts, *results.of_calibration(run, limits.rates)]
        records += [record for measured in everything for record in results.of_measured(run, measured, limits)]
        lines.replace(records)
    target = folder / "benchmarks.md" if partial or options.folder else ROOT / "docs" / "benchmarks.md"
    page.write(lines.path, target)
    _say(f"\n{page.summary(page.by_case(records))}\nwritten: {lines.path}, {target}")
    of_ours = [row for measured in everything for row in measured.rows if row.engine.ours or row.engine.canonical]
    wrong = any(not row.seconds and not row.unavailable for row in of_ours)
    return 1 if wrong else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.run", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="tiny inputs, to see that everything still runs; no figures to keep"
    )
    size.add_argument("--full", action="store_true", help="all cases, the largest among them")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases with TEXT in task and name")
    parser.add_argument(
        "--engine", default="", metavar="TEXT", help="beside mnemex only engines with TEXT in their name"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument(
        "--folder", type=Path, help="where results and page go (default: the repository, for whole runs)"
    )
    return parser.parse_args(arguments)


def _facts(effort: Effort, load: float, blas: str | None) -> dict[str, str]:
    facts = {
        "run": effort,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "instruction sets": ", ".join(environment.features()),
        "pinned to processors": ", ".join(map(str, environment.processors(2))),
        "load average at the start": f"{load:.2f}",
        **environment.versions(),
    }
    if effort != "quick":
        facts["OpenBLAS core inside faiss"] = blas or "unknown"
        facts["oneDNN kernel for bf16 products"] = environment.torch_bf16_kernel() or "unknown"
    return facts


def _contenders(case: Case, plan: Plan, *, only: str, blas: str | None) -> list[tuple[Engine, Setting]]:
    """Engines whose library is installed; those left out are named."""
    core = environment.other_blas_core(blas)
    pairs = contenders(case, only=only, settings=plan.settings, blas_core=core)
    absent = missing(engine for engine, _ in pairs)
    for library in absent:
        _say(f"{library} is not installed: its rows are left out")
    return [pair for pair in pairs if not set(absent) & set(pair[0].libraries)]


def _measured(case: Case, plan: Plan, pairs: Sequence[tuple[Engine, Setting]], processes: Processes) -> list[Measured]:
    """Measure a case on data made for it."""
    _say(f"\n{case.task}: {case.name}")
    data = workloads.make(case)
    truth = reference.answer(case, data)
    with tempfile.TemporaryDirectory(prefix="mnemex-bench-") as name:
        folder = Path(name)
        data.save(folder)
        return measure(case, data, truth=truth, pairs=pairs, plan=plan, folder=folder, processes=processes)


def _printed(records: Sequence[results.Record]) -> str:
    lines = [f"{record.case}: {record.note}" for record in records if record.task == "environment"]
    lines += [
        f"{record.case} ({record.isa}), {record.threads} thread(s): {record.value:,.1f} {record.unit}"
        for record in records
        if record.task == "calibration" and record.value is not None
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
