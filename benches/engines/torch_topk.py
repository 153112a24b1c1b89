"""torch on the CPU: matrix product, `topk`, gather, softmax, as one writes it and as fast as it goes.

`topk` over a long row is slow. The best k entries lie in the k blocks with the largest maxima, so it is enough to
look for them there; the maxima are cheap when a block is every n-th entry of the row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benches.engines import BF16_SCAN, F32_SCAN, Answer, Job, Problem, Scan
from benches.engines.training import Ring, peer

VERSION = torch.__version__
SCORES_AT_ONCE = 1 << 24
CANDIDATES_PER_HIT = 2
BLOCK = 32

Best = tuple[torch.Tensor, torch.Tensor]
"""Scores and ids of the best entries of each query."""

Top = Callable[[torch.Tensor, int], Best]

torch.set_grad_enabled(False)


def isa() -> str:
    """Instruction set of torch's own kernels; oneDNN chooses for itself."""
    return torch.backends.cpu.get_cpu_capability()


def search(problem: Problem) -> Job:
    """Multiply blocks of queries with all keys, and take the best of each row by `topk`."""
    return _search(problem, torch.topk)


def search_blocks(problem: Problem) -> Job:
    """Search with selection by block maxima."""
    return _search(problem, block_top)


def _search(problem: Problem, top: Top) -> Job:
    case, (keys, queries) = problem.case, _tensors(problem)
    keys, queries = keys[0].T, queries[0]
    rows = _rows_at_once(problem)
    products = torch.empty(rows, case.entries)
    scores = torch.empty(case.queries, problem.k)
    ids = torch.empty(case.queries, problem.k, dtype=torch.int64)

    def run() -> Answer:
        for start in range(0, case.queries, rows):
            part = slice(start, min(start + rows, case.queries))
            some = products[: part.stop - start]
            torch.matmul(queries[part], keys, out=some)
            scores[part], ids[part] = top(some, problem.k)
        return {"ids": ids.numpy()[None], "scores": scores.numpy()[None]}

    return Job(run, 4.0 * case.dim)


def search_bf16(problem: Problem) -> Job:
    """Find candidates by a bfloat16 product (AMX where the processor has it), and the best of them by float32."""
    case, (keys, queries) = problem.case, _tensors(problem)
    keys, queries = keys[0], queries[0]
    short_keys, short_queries = keys.bfloat16().T, queries.bfloat16()
    rows = _rows_at_once(problem)
    scores = torch.empty(case.queries, problem.k)
    ids = torch.empty(case.queries, problem.k, dtype=torch.int64)

    def run() -> Answer:
        for start in range(0, case.queries, rows):
            part = slice(start, start + rows)
            products = torch.matmul(short_queries[part], short_keys)
            scores[part], ids[part] = rescored(products, queries[part], keys, problem.k)
        return {"ids": ids.numpy()[None], "scores": scores.numpy()[None]}

    return Job(run, 6.0 * case.dim, scan=BF16_SCAN)


def attend(problem: Problem) -> Job:
    """Attend in all lanes by one batched product and one `topk`."""
    case, (keys, queries) = problem.case, _tensors(problem)
    keys = keys.transpose(1, 2)
    table = torch.from_numpy(problem.values).reshape(-1, case.dim)
    first = torch.arange(case.lanes)[:, None, None] * case.entries

    def run() -> Answer:
        logits, ids = torch.topk(torch.matmul(queries * case.dim**-0.5, keys), problem.k)
        out = _weighted_sum(table, ids + first, logits)
        return {"out": out.view(case.lanes, case.queries, case.dim).numpy(), "ids": ids.numpy()}

    return Job(run, 8.0 * case.dim)


def attend_blocks(problem: Problem) -> Job:
    """Attend lane by lane, into one array of scores that stays in the cache, with selection by block maxima."""
    case, (keys, queries) = problem.case, _tensors(problem)
    products = torch.empty(case.queries, case.entries)

    def best(lane: int) -> Best:
        torch.matmul(queries[lane], keys[lane].T, out=products)
        return block_top(products, problem.k)

    return _lane_by_lane(problem, best, 8.0, F32_SCAN)


def attend_bf16(problem: Problem) -> Job:
    """Attend lane by lane; candidates come from a bfloat16 product and are scored again in float32."""
    keys, queries = _tensors(problem)
    short_keys, short_queries = keys.bfloat16().transpose(1, 2), queries.bfloat16()

    def best(lane: int) -> Best:
        products = torch.matmul(short_queries[lane], short_keys[lane])
        return rescored(products, queries[lane], keys[lane], problem.k)

    return _lane_by_lane(problem, best, 10.0, BF16_SCAN)


def attend_short(problem: Problem) -> Job:
    """Attend over keys and values kept in bfloat16, in all lanes by one batched product.

    The product's scores are rounded to bfloat16, so twice as many are taken as needed, and scored again in float32.
    """
    case, (keys, values, first) = problem.case, _short(problem)
    queries = torch.from_numpy(problem.data.queries)
    short_queries, columns = queries.bfloat16(), keys.transpose(1, 2)
    table, some = keys.view(-1, case.dim), min(CANDIDATES_PER_HIT * problem.k, case.entries)

    def run() -> Answer:
        products = torch.matmul(short_queries, columns)
        candidates = torch.topk(products, some).indices
        taken = table.index_select(0, (candidates + first).view(-1)).view(*candidates.shape, case.dim).float()
        scores, places = torch.topk(torch.matmul(taken, queries.unsqueeze(-1)).squeeze(-1), problem.k)
        ids = candidates.gather(2, places)
        out = _short_sum(values, ids + first, scores * case.dim**-0.5)
        return {"out": out.numpy(), "ids": ids.numpy()}

    return Job(run, 4.0 * case.dim, scan=BF16_SCAN)


def attend_short_unchecked(problem: Problem) -> Job:
    """Attend over bfloat16 and believe the rounded scores: ids near the last place are a matter of luck."""
    case, (keys, values, first) = problem.case, _short(problem)
    queries, columns = torch.from_numpy(problem.data.queries).bfloat16(), keys.transpose(1, 2)

    def run() -> Answer:
        scores, ids = torch.topk(torch.matmul(queries, columns), problem.k)
        out = _short_sum(values, ids + first, scores.float() * case.dim**-0.5)
        return {"out": out.numpy(), "ids": ids.numpy()}

    return Job(run, 4.0 * case.dim, scan=BF16_SCAN)


def _short(problem: Problem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and a table of values in bfloat16, and the place of each lane's first value there."""
    torch.set_num_threads(problem.threads)
    case = problem.case
    keys, values = (torch.from_numpy(array).bfloat16() for array in (problem.data.keys, problem.values))
    return keys, values.view(-1, case.dim), torch.arange(case.lanes)[:, None, None] * case.entries


def _short_sum(table: torch.Tensor, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Gather bfloat16 rows and sum them in float32, weighted by the softmax of their logits."""
    taken = table.index_select(0, ids.view(-1)).view(*ids.shape, -1).float()
    return torch.matmul(torch.softmax(logits, dim=-1).unsqueeze(-2), taken).squeeze(-2)


def _lane_by_lane(problem: Problem, best: Callable[[int], Best], bytes_per_number: float, scan: Scan) -> Job:
    case, values = problem.case, torch.from_numpy(problem.values)
    out = torch.empty(case.lanes, case.queries, case.dim)
    ids = torch.empty(case.lanes, case.queries, problem.k, dtype=torch.int64)

    def run() -> Answer:
        for lane in range(case.lanes):
            scores, ids[lane] = best(lane)
            out[lane] = _weighted_sum(values[lane], ids[lane], scores * case.dim**-0.5)
        return {"out": out.numpy(), "ids": ids.numpy()}

    return Job(run, bytes_per_number * case.dim, scan=scan)


def block_top(products: torch.Tensor, k: int, block: int = BLOCK) -> Best:
    """Take the best k of each row by way of the maxima of blocks; block b holds entries b, b + n, b + 2n, ..."""
    rows, entries = products.shape
    n = entries // block
    if entries % block or n < k:
        scores, ids = torch.topk(products, k)
        return scores, ids
    blocked = products.view(rows, block, n)
    blocks = torch.topk(blocked.amax(1), k, sorted=False).indices
    inside = torch.gather(blocked, 2, blocks.unsqueeze(1).expand(-1, block, -1))
    scores, places = torch.topk(inside.view(rows, -1), k)
    return scores, torch.gather(blocks, 1, places % k) + places // k * n


def rescored(products: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, k: int) -> Best:
    """Take more than `k` by the rounded products, then the best `k` of those by float32."""
    some = min(CANDIDATES_PER_HIT * k, products.shape[1])
    candidates = block_top(products, some)[1]
    taken = keys.index_select(0, candidates.view(-1)).view(*candidates.shape, -1)
    exact = torch.matmul(taken, queries.unsqueeze(-1)).squeeze(-1)
    scores, places = torch.topk(exact, k)
    return scores, candidates.gather(1, places)


def train(problem: Problem) -> Job:
    """Take one step of training, with entries chosen by `topk`."""
    return _train(problem, torch.topk)


def train_blocks(problem: Problem) -> Job:
    """Take one step of training, with entries chosen by block maxima."""
    return _train(problem, block_top)


def _train(problem: Problem, top: Top) -> Job:
    products = torch.empty(problem.case.queries, problem.case.entries)

    def choose(ring: Ring, queries: torch.Tensor) -> torch.Tensor:
        pairs = zip(queries, ring.keys, strict=True)
        return torch.stack([top(torch.matmul(q, keys.T, out=products), problem.k)[1] for q, keys in pairs])

    return peer(problem, choose)


def train_bf16(problem: Problem) -> Job:
    """Take one step of training; candidates come from a bfloat16 product and are scored again in float32."""

    def choose(ring: Ring, queries: torch.Tensor) -> torch.Tensor:
        assert ring.short is not None
        lanes = zip(queries, ring.keys, ring.short, strict=True)
        return torch.stack([rescored(q.bfloat16() @ short.T, q, keys, problem.k)[1] for q, keys, short in lanes])

    return peer(problem, choose, short=True)


def _weighted_sum(table: torch.Tensor, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Gather and sum rows of a table in one go, weighted by the softmax of their logits."""
    k = ids.shape[-1]
    weights = torch.softmax(logits, dim=-1).view(-1, k)
    return torch.nn.functional.embedding_bag(ids.view(-1, k), table, per_sample_weights=weights, mode="sum")


def _rows_at_once(problem: Problem) -> int:
    return max(1, min(problem.case.queries, SCORES_AT_ONCE // problem.case.entries))


def _tensors(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and queries, without a copy."""
    torch.set_num_threads(problem.threads)
    return torch.from_numpy(problem.data.keys), torch.from_numpy(problem.data.queries)
