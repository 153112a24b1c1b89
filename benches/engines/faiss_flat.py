"""faiss: IndexFlatIP, one `knn` per lane, an inverted file with one list per lane, and pairs of half keys."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import numpy.typing as npt

from benches.engines import F32_SCAN, Answer, Job, Problem, Scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from benches.cases import Case
    from benches.workloads import Floats

Values = npt.NDArray[np.float32] | npt.NDArray[np.uint16]

VERSION = faiss.__version__
SUMS_AT_ONCE = 128
SHARES = 8
"""Into so many parts per thread are the lanes shared out."""


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
    scores, ids = _hits(problem)
    weigh, out = _sums(problem, problem.values, scores, ids)

    def some(lanes: slice) -> None:
        for lane in range(lanes.start, lanes.stop):
            scores[lane], ids[lane] = faiss.knn(
                data.queries[lane], data.keys[lane], problem.k, metric=faiss.METRIC_INNER_PRODUCT
            )
        weigh(lanes)

    return Job(_over_lanes(some, problem, {"out": out, "ids": ids}), 8.0 * case.dim)


def attend_blas(problem: Problem) -> Job:
    """Search every lane with matrix products."""
    faiss.cvar.distance_compute_blas_threshold = 1
    return attend(problem)


def attend_lists(problem: Problem) -> Job:
    """Hold all lanes in one inverted file: a list is a lane, and queries go straight to their list."""
    case = problem.case
    index = faiss.IndexIVFFlat(_lanes(case), case.dim, case.lanes, faiss.METRIC_INNER_PRODUCT)
    return _attend_lists(problem, index, problem.values, 8.0 * case.dim + 8, F32_SCAN)


def attend_short_lists(problem: Problem) -> Job:
    """Hold keys and values in bfloat16; the products are float32."""
    case = problem.case
    kind = faiss.ScalarQuantizer.QT_bf16
    index = faiss.IndexIVFScalarQuantizer(_lanes(case), case.dim, case.lanes, kind, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = False
    values = (problem.values.view(np.uint32) >> 16).astype(np.uint16)
    return _attend_lists(problem, index, values, 4.0 * case.dim + 8, Scan(key_bytes=2))


def _lanes(case: Case) -> faiss.IndexFlatIP:
    """Make a quantizer that nobody asks, with as many entries as there are lanes."""
    quantizer = faiss.IndexFlatIP(case.dim)
    quantizer.add(np.zeros((case.lanes, case.dim), np.float32))
    return quantizer


def _attend_lists(problem: Problem, index: Any, values: Values, size: float, scan: Scan) -> Job:  # noqa: ANN401
    # The Python signatures of the index differ from those of the stubs.
    case, data = problem.case, problem.data
    faiss.omp_set_num_threads(problem.threads)
    index.is_trained, index.nprobe = True, 1
    index.parallel_mode = 3  # by query: with the default, `search_preassigned` uses one thread
    numbers = np.arange(case.entries, dtype=np.int64)
    for lane, keys in enumerate(data.keys):
        lists = np.full(case.entries, lane, np.int64)
        index.add_core(case.entries, faiss.swig_ptr(keys), faiss.swig_ptr(numbers), faiss.swig_ptr(lists))
    queries = data.queries.reshape(-1, case.dim)
    lists = np.repeat(np.arange(case.lanes), case.queries)[:, None]
    distances = np.zeros(lists.shape, np.float32)
    scores, ids = _hits(problem)
    flat = (len(queries), problem.k)
    weigh, out = _sums(problem, values, scores, ids)
    sums = _over_lanes(weigh, problem, {"out": out, "ids": ids})

    def run() -> Answer:
        index.search_preassigned(queries, problem.k, lists, distances, D=scores.reshape(flat), I=ids.reshape(flat))
        return sums()

    return Job(run, size, scan=scan)


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

    An `IndexFlatIP` per head would search alike and be slower to write: it removes by moving all that stays. Matrix
    products always: some builds of faiss scan query by query at any batch size unless they are told.
    """
    import torch  # here, since no other task needs it

    from benches.engines import training

    faiss.cvar.distance_compute_blas_threshold = 1
    faiss.omp_set_num_threads(1)
    _, ids = _hits(problem)
    now: list[tuple[Floats, Floats]] = []

    def some(lanes: slice) -> None:
        keys, queries = now[0]
        for lane in range(lanes.start, lanes.stop):
            _, ids[lane] = faiss.knn(queries[lane], keys[lane], problem.k, metric=faiss.METRIC_INNER_PRODUCT)

    search = _over_lanes(some, problem, {})

    def choose(ring: training.Ring, queries: torch.Tensor) -> torch.Tensor:
        now[:] = [training.arrays(ring, queries)]
        search()
        return torch.from_numpy(ids)

    return training.peer(problem, choose)


def product(problem: Problem) -> Job:
    """Look up product keys in a `MultiIndexQuantizer` per head.

    Half keys have length 1, so the best pair is the nearest. What it gives are distances, and ids with the second half
    in front; neither is made ours in the time taken.
    """
    case, data = problem.case, problem.data
    faiss.omp_set_num_threads(problem.threads)
    bits = case.entries.bit_length() - 1
    indexes = [faiss.MultiIndexQuantizer(2 * case.dim, 2, bits) for _ in data.keys]
    for index, keys in zip(indexes, data.keys, strict=True):
        faiss.copy_array_to_vector(keys.ravel(), index.pq.centroids)
        index.is_trained, index.ntotal = True, case.slots
    scores, ids = _hits(problem)

    def run() -> Answer:
        for index, queries, d, i in zip(indexes, data.queries, scores, ids, strict=True):
            index.search(queries, problem.k, D=d, I=i)
        return {}

    def explain() -> Answer:
        lengths = np.einsum("lqd,lqd->lq", data.queries, data.queries, dtype=np.float64)[..., None] + 2
        return {"scores": (lengths - scores) / 2, "ids": ids % case.entries * case.entries + ids // case.entries}

    return Job(run, case.nbytes / case.slots, explain)


def _hits(problem: Problem) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Make arrays for scores and ids `[lanes, queries, k]`."""
    shape = (problem.case.lanes, problem.case.queries, problem.k)
    return np.empty(shape, np.float32), np.empty(shape, np.int64)


def _sums(
    problem: Problem, values: Values, scores: Floats, ids: npt.NDArray[np.int64]
) -> tuple[Callable[[slice], None], Floats]:
    """Make an array for sums of values weighted by the softmax of their scores, and what fills some lanes of it.

    Few calls for many lanes of few queries, and no more values at once than a cache holds.
    """
    case = problem.case
    table = values.reshape(-1, case.dim)
    out = np.empty((case.lanes, case.queries, case.dim), np.float32)
    first = case.entries * np.arange(case.lanes)[:, None, None]
    at_once = max(1, SUMS_AT_ONCE // case.queries)

    def weigh(lanes: slice) -> None:
        for start in range(lanes.start, lanes.stop, at_once):
            part = slice(start, min(start + at_once, lanes.stop))
            taken = table[ids[part] + first[part]]
            if taken.dtype == np.uint16:  # bfloat16 is the upper half of float32
                taken = (taken.astype(np.uint32) << 16).view(np.float32)
            logits = scores[part] * np.float32(case.dim**-0.5)
            weights = np.exp(logits - logits.max(axis=2, keepdims=True))
            weights /= weights.sum(axis=2, keepdims=True)
            out[part] = np.matmul(weights[:, :, None, :], taken)[:, :, 0]

    return weigh, out


def _over_lanes(some: Callable[[slice], None], problem: Problem, answer: Answer) -> Callable[[], Answer]:
    """Run `some` for all lanes, on as many Python threads as the problem allows, and return `answer`."""
    lanes = problem.case.lanes
    if problem.threads == 1:

        def run() -> Answer:
            some(slice(0, lanes))
            return answer

        return run
    bounds = np.linspace(0, lanes, min(lanes, SHARES * problem.threads) + 1).astype(int).tolist()
    shares = [slice(*pair) for pair in itertools.pairwise(bounds)]
    pool = ThreadPoolExecutor(problem.threads, initializer=faiss.omp_set_num_threads, initargs=(1,))

    def run_pooled() -> Answer:
        list(pool.map(some, shares))
        return answer

    return run_pooled
