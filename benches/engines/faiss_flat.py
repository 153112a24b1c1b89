"""faiss: IndexFlatIP, one `knn` per lane, and an inverted file with one list per lane."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from benches.engines import Answer, Job, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from benches.workloads import Floats

VERSION = faiss.__version__


def isa() -> str:
    """Instruction set that faiss dispatches to; its BLAS chooses for itself."""
    return faiss.SIMDConfig.get_level_name()


def search(problem: Problem) -> Job:
    """`IndexFlatIP.search` into arrays made beforehand; small batches scan one query at a time."""
    case, data = problem.case, problem.data
    faiss.omp_set_num_threads(problem.threads)
    index = faiss.IndexFlatIP(case.dim)
    index.add(data.keys[0])
    queries = data.queries[0]
    scores = np.empty((case.queries, problem.k), np.float32)
    ids = np.empty((case.queries, problem.k), np.int64)

    def run() -> Answer:
        index.search(queries, problem.k, D=scores, I=ids)
        return {"ids": ids[None], "scores": scores[None]}

    return Job(run, 4.0 * case.dim)


def search_blas(problem: Problem) -> Job:
    """Search with matrix products at every batch size."""
    faiss.cvar.distance_compute_blas_threshold = 1
    return search(problem)


def attend(problem: Problem) -> Job:
    """`faiss.knn` per lane, then gather and softmax in numpy.

    Lanes are shared out to Python threads of one OpenMP thread each, which suits many small searches better than a
    parallel region per lane.
    """
    case, data = problem.case, problem.data
    faiss.omp_set_num_threads(1)
    out = np.empty((case.lanes, case.queries, case.dim), np.float32)
    ids = np.empty((case.lanes, case.queries, problem.k), np.int64)

    def lane(number: int) -> None:
        scores, ids[number] = faiss.knn(
            data.queries[number], data.keys[number], problem.k, metric=faiss.METRIC_INNER_PRODUCT
        )
        out[number] = _weighted_sum(scores, problem.values[number][ids[number]])

    return Job(_over_lanes(lane, problem, {"out": out, "ids": ids}), 8.0 * case.dim)


def attend_blas(problem: Problem) -> Job:
    """Search every lane with matrix products."""
    faiss.cvar.distance_compute_blas_threshold = 1
    return attend(problem)


def attend_lists(problem: Problem) -> Job:
    """Hold all lanes in one inverted file: a list is a lane, and queries go straight to their list."""
    case, data = problem.case, problem.data
    faiss.omp_set_num_threads(problem.threads)
    quantizer = faiss.IndexFlatIP(case.dim)
    quantizer.add(np.zeros((case.lanes, case.dim), np.float32))
    index: Any = faiss.IndexIVFFlat(  # its Python signatures differ from those of the stubs
        quantizer, case.dim, case.lanes, faiss.METRIC_INNER_PRODUCT
    )
    index.is_trained, index.nprobe = True, 1
    index.parallel_mode = 3  # by query: with the default, `search_preassigned` uses one thread
    numbers = np.arange(case.entries, dtype=np.int64)
    for lane, keys in enumerate(data.keys):
        lists = np.full(case.entries, lane, np.int64)
        index.add_core(case.entries, faiss.swig_ptr(keys), faiss.swig_ptr(numbers), faiss.swig_ptr(lists))
    queries = data.queries.reshape(-1, case.dim)
    lists = np.repeat(np.arange(case.lanes), case.queries)[:, None]
    distances = np.zeros(lists.shape, np.float32)
    scores = np.empty((len(queries), problem.k), np.float32)
    ids = np.empty((len(queries), problem.k), np.int64)
    shape = (case.lanes, case.queries, problem.k)
    out = np.empty((case.lanes, case.queries, case.dim), np.float32)

    def lane_sum(lane: int) -> None:
        out[lane] = _weighted_sum(scores.reshape(shape)[lane], problem.values[lane][ids.reshape(shape)[lane]])

    sums = _over_lanes(lane_sum, problem, {"out": out, "ids": ids.reshape(shape)})

    def run() -> Answer:
        index.search_preassigned(queries, problem.k, lists, distances, D=scores, I=ids)
        return sums()

    return Job(run, 8.0 * case.dim + 8)


def write(problem: Problem) -> Job:
    """Fill an index per lane, chunk by chunk; keys alone, since faiss keeps no values."""
    case, data = problem.case, problem.data
    faiss.omp_set_num_threads(problem.threads)
    filled: list[faiss.IndexFlatIP] = []

    def run() -> Answer:
        filled[:] = [faiss.IndexFlatIP(case.dim) for _ in range(case.lanes)]
        for start in range(0, case.entries, case.chunk):
            for index, keys in zip(filled, data.keys, strict=True):
                index.add(keys[start : start + case.chunk])
        return {}

    def explain() -> Answer:
        return {"keys": np.stack([index.reconstruct_n(0, case.entries) for index in filled])}

    return Job(run, 4.0 * case.dim, explain)


def train(problem: Problem) -> Job:
    """Take one step of training: `faiss.knn` per head over arrays that are written in place, the rest in torch.

    An `IndexFlatIP` per head would search alike and be slower to write: it removes by moving all that stays.
    """
    import torch  # here, since no other task needs it

    from benches.engines import training

    faiss.omp_set_num_threads(1)
    case = problem.case
    ids = np.empty((case.lanes, case.queries, problem.k), np.int64)
    now: list[tuple[Floats, Floats]] = []

    def lane(number: int) -> None:
        keys, queries = now[0]
        _, ids[number] = faiss.knn(queries[number], keys[number], problem.k, metric=faiss.METRIC_INNER_PRODUCT)

    search = _over_lanes(lane, problem, {})

    def choose(ring: training.Ring, queries: torch.Tensor) -> torch.Tensor:
        now[:] = [training.arrays(ring, queries)]
        search()
        return torch.from_numpy(ids)

    return training.peer(problem, choose)


def _weighted_sum(scores: Floats, values: Floats) -> Floats:
    """Softmax of `[queries, k]` scores over `[queries, k, dim]` values."""
    logits = scores * np.float32(values.shape[-1] ** -0.5)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    out: Floats = np.matmul(weights[:, None, :], values)[:, 0]
    return out


def _over_lanes(lane: Callable[[int], None], problem: Problem, answer: Answer) -> Callable[[], Answer]:
    """Run `lane` for every lane, on as many Python threads as the problem allows, and return `answer`."""
    lanes = range(problem.case.lanes)
    if problem.threads == 1:

        def run() -> Answer:
            for number in lanes:
                lane(number)
            return answer

        return run
    pool = ThreadPoolExecutor(problem.threads, initializer=faiss.omp_set_num_threads, initargs=(1,))

    def run_pooled() -> Answer:
        list(pool.map(lane, lanes))
        return answer

    return run_pooled
