"""The process that runs one engine: it obeys one JSON request per line and answers with one JSON line.

Every engine runs in such a process, so that environment variables, thread pools and allocators of one cannot touch
another. `prepare` loads the data, builds the engine, takes its first answer and leaves it in a file; `pin` ties all
threads to the given processors; `time` runs the engine for one round.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benches.cases import Case
from benches.engines import Job, Problem, Unavailable
from benches.workloads import Data


@dataclass
class Prepared:
    """A job, and how many runs make one round."""

    job: Job
    runs: int


def main() -> None:
    """Serve requests from standard input until it closes."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the replies
    jobs: dict[str, Prepared] = {}
    processors = _processors()
    for line in sys.stdin:
        request = json.loads(line)
        match request["do"]:
            case "prepare":
                _pin(processors)  # a pool that an engine makes must see all of them
                reply = _prepare(jobs, request)
            case "pin":
                _pin(request["processors"])
                reply = {}
            case "time":
                reply = {"seconds": _time(jobs[request["job"]])}
            case "forget":
                reply = {"forgotten": jobs.pop(request["job"], None) is not None}
            case other:
                raise ValueError(f"unknown request {other!r}")
        gc.collect()
        print(json.dumps(reply), file=replies)


def _prepare(jobs: dict[str, Prepared], request: dict[str, Any]) -> dict[str, Any]:
    module = importlib.import_module(request["module"])
    case = Case(**request["case"])
    folder = Path(request["folder"])
    problem = Problem(case, Data.load(folder), request["threads"])
    try:
        job: Job = getattr(module, request["function"])(problem)
    except Unavailable as missing:
        return {"version": module.VERSION, "isa": module.isa(), "unavailable": str(missing)}
    start = perf_counter()
    answer = dict(job.run())
    seconds = perf_counter() - start
    if job.explain is not None:
        answer.update(job.explain())
    np.savez(Path(request["answer"]), allow_pickle=False, **answer)
    jobs[request["job"]] = Prepared(job, _runs(job, seconds, request["round_seconds"]))
    return {
        "version": module.VERSION,
        "isa": module.isa(),
        "bytes_per_vector": job.bytes_per_vector,
        "scan": asdict(job.scan),
        "remark": "" if job.remark is None else job.remark(),
    }


def _runs(job: Job, first: float, round_seconds: float) -> int:
    """Count the runs that fill a round; an engine that has not yet run that long is warmed up by it."""
    if first >= round_seconds:
        return 1
    warm = perf_counter() + round_seconds
    done, start = 0, perf_counter()
    while perf_counter() < warm:
        job.run()
        done += 1
    return max(1, math.ceil(round_seconds * done / (perf_counter() - start)))


def _processors() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _pin(processors: list[int]) -> None:
    """Tie every thread of this process, idle ones of a pool too, to some processors."""
    if hasattr(os, "sched_setaffinity"):
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), processors)


def _time(prepared: Prepared) -> float:
    """Seconds of one run, averaged over one round."""
    run = prepared.job.run
    gc.disable()
    start = perf_counter()
    for _ in range(prepared.runs):
        run()
    seconds = (perf_counter() - start) / prepared.runs
    gc.enable()
    return seconds


if __name__ == "__main__":
    main()
