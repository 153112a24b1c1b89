"""usearch: exact search without an index."""

from __future__ import annotations

import numpy as np
import usearch
from usearch.compiled import MetricKind
from usearch.index import Index
from usearch.index import search as exact_search

from benches.engines import Answer, Job, Problem

VERSION = usearch.__version__


def isa() -> str:
    """Instruction set that usearch reports for an index of this metric."""
    return Index(ndim=64, metric=MetricKind.IP, dtype="f32").hardware_acceleration


def search(problem: Problem) -> Job:
    """Exact search of one lane; usearch reports 1 - score."""
    case, data, threads = problem.case, problem.data, problem.threads
    keys, queries = data.keys[0], data.queries[0]

    def run() -> Answer:
        found = exact_search(keys, queries, problem.k, MetricKind.IP, exact=True, threads=threads)
        shape = (1, case.queries, problem.k)
        return {"ids": np.asarray(found.keys).reshape(shape), "scores": 1 - np.asarray(found.distances).reshape(shape)}

    return Job(run, 4.0 * case.dim)
