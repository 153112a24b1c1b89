"""mnemex as a user calls it: numpy arrays in, numpy arrays out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

import mnemex as mx
from benches.engines import Answer, Job, Problem, Scan, Unavailable
from benches.reference import CONSOLIDATED
from benches.workloads import Arrivals
from mnemex import _arrays

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from mnemex._arrays import ArrayLike

VERSION = mx.__version__
BF16_PRODUCTS = ("amx", "avx512bf16")
"""Instruction sets with products of bfloat16."""

WORTH_CODING = {"avx512vnni": 32, "avx512bf16": 64}
"""Queries of a lane from which keys are looked at in bytes, as `rust/core/src/form.rs` decides."""


def isa() -> str:
    """Instruction set that mnemex chose, or was told to use."""
    return mx.build_info().isa


def search(problem: Problem) -> Job:
    """Exact search of one lane, without values."""
    return _search(problem, mx.Bank(key_dim=problem.case.dim), _scan(problem))


def search_int8(problem: Problem) -> Job:
    """Exact search that looks at an int8 copy of the keys first."""
    options: dict[str, Any] = {"scan_codec": "int8"}
    try:
        bank = mx.Bank(key_dim=problem.case.dim, **options)
    except mx.Error as refused:
        raise Unavailable("this mnemex has no scan_codec='int8'") from refused
    return _search(problem, bank, Scan(arithmetic="int8", key_bytes=1))


def _search(problem: Problem, bank: mx.Bank, scan: Scan) -> Job:
    case, data, threads = problem.case, problem.data, problem.threads
    k = problem.k
    bank.write(data.keys[0])
    queries = data.queries[0]

    def run() -> Answer:
        scores, ids = bank.search(queries, k, threads=threads)
        return {"ids": ids[None], "scores": scores[None]}

    return Job(run, bank.nbytes / case.entries, None, _remark_of(bank, queries[None, None], k), scan)


def _remark_of(bank: mx.Bank, queries: ArrayLike, k: int | None) -> Callable[[], str] | None:
    return None if k is None else lambda: _remark(bank, queries, k)


def _remark(bank: mx.Bank, queries: ArrayLike, k: int) -> str:
    """Say what exact answers cost beyond the first pass: on one thread, in a run of its own."""
    native = bank._native_snapshot()
    vectors = _arrays.vectors("queries", queries, one_lane=False)
    native.tally(vectors, k, 1)
    passed, rescored, scanning, deciding = native.tally(vectors, k, 1)
    n = math.prod(vectors[0].shape[:-1])
    share = deciding / (scanning + deciding)
    return f"{passed / n:.0f} pass, {rescored / n:.0f} rescored in {share:.0%} of the time"


def attend(problem: Problem) -> Job:
    """Softmax attention over the best k of each lane, or over all of it."""
    case, data, threads = problem.case, problem.data, problem.threads
    bank = _bank(problem)
    bank.write(data.keys[None], problem.values[None])
    queries, k = data.queries[None], case.k

    def run() -> Answer:
        out, lse = bank.attend(queries, k, threads=threads)
        return {"out": out[0], "lse": lse[0]}

    def explain() -> Answer:
        if k is None:
            return {}
        hits = bank.attend(queries, k, hits=True).hits
        assert hits is not None
        return {"ids": hits.ids[0]}

    return Job(run, bank.nbytes / (case.lanes * case.entries), explain, _remark_of(bank, queries, k), _scan(problem))


def write(problem: Problem) -> Job:
    """Fill a new bank chunk by chunk, each chunk committed."""
    case, data = problem.case, problem.data
    keys, values = data.keys[None], problem.values[None]
    filled: list[mx.Bank] = []

    def run() -> Answer:
        bank = _bank(problem)
        for start in range(0, case.entries, case.chunk):
            chunk = slice(start, start + case.chunk)
            bank.write(keys[:, :, chunk], values[:, :, chunk])
        filled[:] = [bank]
        return {}

    def explain() -> Answer:
        ids = np.arange(case.entries)[None]
        read_keys, read_values = filled[0].gather(ids)
        assert read_values is not None
        return {"keys": read_keys[0], "values": read_values[0]}

    run()
    return Job(run, filled[0].nbytes / (case.lanes * case.entries), explain)


def consolidate(problem: Problem) -> Job:
    """Write to full lanes that merge what is alike, the longest untouched replaced."""
    policy = mx.Consolidate(threshold=CONSOLIDATED)
    return _write_full(problem, write=policy, evict=mx.OldestAge(), check=True)


def consolidate_in_turn(problem: Problem) -> Job:
    """Consolidate one token after the other."""
    policy = mx.Consolidate(threshold=CONSOLIDATED, conflicts="sequential")
    return _write_full(problem, write=policy, evict=mx.OldestAge())


def append_and_search(problem: Problem) -> Job:
    """Write to full lanes, first in, first out, and find the nearest entry of each token."""
    return _write_full(problem, search=True)


def forget_oldest(problem: Problem) -> Job:
    """Write to full lanes, first in, first out."""
    return _write_full(problem)


def forget_least_recent(problem: Problem) -> Job:
    """Write to full lanes, the least recently used out."""
    return _write_full(problem, evict=mx.Lru())


def forget_least_attended(problem: Problem) -> Job:
    """Write to full lanes, the least attended out."""
    return _write_full(problem, evict=mx.AttentionMass())


def forget_retained_least(problem: Problem) -> Job:
    """Write to full lanes, out by a forgetting curve, whose order changes with time."""
    return _write_full(problem, evict=mx.Retention())


def _write_full(
    problem: Problem,
    *,
    search: bool = False,
    check: bool = False,
    **policies: Any,  # noqa: ANN401 - parts
) -> Job:
    case, arrivals = problem.case, Arrivals(problem.case, problem.data)
    bank = mx.Bank(
        rows=1, heads=case.lanes, key_dim=case.dim, value_dim=case.dim, capacity=case.entries,
        metric="cos", key_codec="f32", value_codec="f32", threads=problem.threads, **policies,
    )  # fmt: skip
    bank.write(problem.data.keys[None], problem.values[None])

    def run() -> Answer:
        keys, values = arrivals.next()
        if search:
            bank.search(keys[None], 1)
        bank.write(keys[None], values[None])
        return {}

    def explain() -> Answer:
        (ids,) = bank.find()
        hits = np.broadcast_to(ids, (1, case.lanes, 1, len(ids)))
        found = bank.gather(mx.Hits(np.zeros(hits.shape, np.float32), hits, np.zeros(1, np.int64)), columns=["count"])
        there = found[2]["count"][0, :, 0] > 0
        kept = (np.asarray(part)[0, :, 0][there].reshape(case.lanes, -1, case.dim) for part in found[:2])
        return dict(zip(("keys", "values"), kept, strict=True))

    return Job(run, bank.nbytes / (case.lanes * case.entries), explain if check else None)


def train(problem: Problem) -> Job:
    """Take one step of training through `mnemex.torch.attention`."""
    import torch  # here, since no other task needs it

    from benches.engines.training import Segment, Turn

    torch.set_num_threads(problem.threads)
    case, keys, values = problem.case, problem.data.keys[None], problem.values[None]
    segment, turn = Segment(problem), Turn(case.entries, case.chunk)
    bank = _bank(problem, capacity=case.entries)
    bank.write(keys, values)

    def run() -> Answer:
        with torch.enable_grad():
            q, k, v = (x[None] for x in (segment.queries, segment.keys, segment.values))
            out = mx.torch.attention(q, k, v, memory=bank, top_k=problem.k, is_causal=True)
            answer = segment.answer(out[0])
        run = turn.next()
        bank.write(keys[:, :, run], values[:, :, run])
        return answer

    return Job(run, bank.nbytes / (case.lanes * case.entries), scan=_scan(problem))


def product(problem: Problem) -> Job:
    """Look up product keys."""
    keys, queries = _product(problem, values=False)

    def run() -> Answer:
        scores, ids = keys.lookup(queries, problem.k, threads=problem.threads)
        return {"ids": ids.swapaxes(0, 1), "scores": scores.swapaxes(0, 1)}

    return Job(run, problem.case.nbytes / problem.case.slots, scan=_product_scan())


def product_read(problem: Problem) -> Job:
    """Read the values of product keys without torch."""
    keys, queries = _product(problem, values=True)

    def run() -> Answer:
        return {"out": keys.read(queries, problem.k, threads=problem.threads)[None]}

    return Job(run, problem.case.nbytes / problem.case.slots, scan=_product_scan())


def _product_scan() -> Scan:
    """Half keys are float32, and made codes of at each call where products of bytes are faster."""
    return Scan(arithmetic="int8" if isa() in WORTH_CODING else "f32")


def _product(problem: Problem, *, values: bool) -> tuple[mx.ProductKeys, NDArray[np.float32]]:
    """Make product keys, and queries `[queries, heads, 2 dim]`."""
    case, data = problem.case, problem.data
    halves = data.keys.reshape(case.lanes, 2, case.entries, case.dim)
    return mx.ProductKeys(halves, problem.values if values else None), data.queries.swapaxes(0, 1).copy()


def product_layer(problem: Problem) -> Job:
    """Go forward through `mnemex.torch.ProductKeyMemory`."""
    layer, queries = _layer(problem)
    layer.requires_grad_(requires_grad=False)

    def run() -> Answer:
        return {"out": layer(queries.flatten(1)).numpy()[None]}

    return Job(run, problem.case.nbytes / problem.case.slots, scan=_product_scan())


def product_train(problem: Problem) -> Job:
    """Go forward and backward through `mnemex.torch.ProductKeyMemory`."""
    import torch  # here, since other tasks need none

    from benches.engines.training import product_answer

    layer, queries = _layer(problem)
    queries.requires_grad_()
    gradient = torch.tensor(problem.values[-problem.case.queries :])

    def run() -> Answer:
        with torch.enable_grad():
            out = layer(queries.flatten(1))
            return product_answer(out, gradient, queries, (layer.rows, layer.columns), layer.values.weight)

    return Job(run, problem.case.nbytes / problem.case.slots, scan=_product_scan())


def _layer(problem: Problem) -> tuple[mx.torch.ProductKeyMemory, torch.Tensor]:
    """Make a layer of torch that is given its queries, `[queries, heads, 2 dim]`: no projection before, nor one behind.

    Its number of threads comes from the environment alone.
    """
    import torch  # here, since other tasks need none

    torch.set_num_threads(problem.threads)
    case, data = problem.case, problem.data
    table = mx.torch.ValueTable(1, case.value_dim)
    table.weight = torch.nn.Parameter(torch.from_numpy(problem.values))
    width = case.lanes * 2 * case.dim
    layer = mx.torch.ProductKeyMemory(
        width, case.entries, heads=case.lanes, k=problem.k, key_dim=2 * case.dim, values=table, gated=True
    )
    layer.query, layer.gate, layer.out = torch.nn.Identity(), None, None  # type: ignore[assignment]
    halves = torch.from_numpy(data.keys).split(case.entries, 1)
    layer.rows, layer.columns = (torch.nn.Parameter(half.contiguous()) for half in halves)
    return layer, torch.from_numpy(data.queries).transpose(0, 1).contiguous()


def _bank(problem: Problem, *, capacity: int | None = None) -> mx.Bank:
    """Make a bank of one row, which keeps numbers in the case's dtype."""
    case = problem.case
    codec = "f32" if case.dtype == "float32" else "bf16"
    return mx.Bank(
        rows=1,
        heads=case.lanes,
        key_dim=case.dim,
        value_dim=case.dim,
        capacity=capacity,
        key_codec=codec,
        value_codec=codec,
        threads=problem.threads,
    )


def _scan(problem: Problem) -> Scan:
    """Without selection all is float32; with it, upper halves of float32 keys are read first, or bfloat16 keys."""
    if problem.case.k is None:
        return Scan(key_bytes=problem.case.number_bytes)
    if problem.case.queries >= WORTH_CODING.get(isa(), math.inf):
        return Scan(arithmetic="int8", key_bytes=2)
    return Scan(arithmetic="bf16" if isa() in BF16_PRODUCTS else "f32", key_bytes=2)
