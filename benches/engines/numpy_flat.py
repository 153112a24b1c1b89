"""numpy: matrix product and `argpartition`, a block of queries at a time."""

from __future__ import annotations

import numpy as np

from benches.engines import Answer, Job, Problem

VERSION = np.__version__
SCORES_AT_ONCE = 1 << 24


def isa() -> str:
    """Widest instruction set that numpy found; its BLAS chooses for itself."""
    return np.show_config(mode="dicts")["SIMD Extensions"]["found"][-1]


def search(problem: Problem) -> Job:
    """Exact search of one lane; the scores of a block go into an array made beforehand."""
    case, data = problem.case, problem.data
    keys, queries = data.keys[0].T, data.queries[0]
    block = max(1, min(case.queries, SCORES_AT_ONCE // case.entries))
    products = np.empty((block, case.entries), np.float32)

    def run() -> Answer:
        ids, scores = [], []
        for start in range(0, case.queries, block):
            part = queries[start : start + block]
            some = np.matmul(part, keys, out=products[: len(part)])
            best_ids = np.argpartition(some, case.entries - problem.k, axis=1)[:, case.entries - problem.k :]
            best = np.take_along_axis(some, best_ids, axis=1)
            order = np.argsort(-best, axis=1)
            ids.append(np.take_along_axis(best_ids, order, axis=1))
            scores.append(np.take_along_axis(best, order, axis=1))
        return {"ids": np.concatenate(ids)[None], "scores": np.concatenate(scores)[None]}

    return Job(run, 4.0 * case.dim)
