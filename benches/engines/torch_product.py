"""A product-key layer in torch, as one writes it and as fast as it goes."""

from __future__ import annotations

import torch
from torch import Tensor

from benches.engines import Answer, Job, Problem
from benches.engines.torch_topk import VERSION, Best, block_top, isa
from benches.engines.training import product_answer

__all__ = ["VERSION", "isa"]

BLOCK = 4


class Layer:
    """Queries `[queries, heads, 2 dim]`, half keys `[heads, entries, dim]` and the table of values.

    `tuned`: the best of each half are found by block maxima, and only pairs that can be among the best k are added up:
    before pair (i, j) of halves in order of their scores come (i + 1) (j + 1) - 1 others that are as good.
    """

    def __init__(self, problem: Problem, *, tuned: bool = False) -> None:
        torch.set_num_threads(problem.threads)
        case, data = problem.case, problem.data
        self.k, self.n, self.tuned = problem.k, case.entries, tuned
        self.queries = torch.from_numpy(data.queries).transpose(0, 1).contiguous()
        rows, columns = torch.from_numpy(data.keys).split(case.entries, 1)
        self.halves = rows.contiguous(), columns.contiguous()
        self.table = torch.from_numpy(data.values) if data.values is not None else torch.empty(0)
        first, second = (places.flatten() for places in torch.meshgrid(*2 * [torch.arange(self.k)], indexing="ij"))
        if tuned:
            able = (first + 1) * (second + 1) <= self.k
            first, second = first[able], second[able]
        self.pairs = first, second

    def lookup(self) -> Best:
        """Find the best k pairs of each query and head, `[heads, queries, k]`."""
        of_heads = self.queries.transpose(0, 1).split(self.queries.shape[2] // 2, 2)
        (rows, i), (columns, j) = (
            self._top(queries @ keys.transpose(1, 2)) for queries, keys in zip(of_heads, self.halves, strict=True)
        )
        first, second = self.pairs
        if self.tuned:
            sums = rows.index_select(2, first) + columns.index_select(2, second)
        else:
            sums = (rows[..., :, None] + columns[..., None, :]).flatten(2)
        scores, best = torch.topk(sums, self.k)
        return scores, i.gather(2, first[best]) * self.n + j.gather(2, second[best])

    def _top(self, scores: Tensor) -> Best:
        if not self.tuned:
            best, ids = torch.topk(scores, self.k)
            return best, ids
        with torch.no_grad():
            ids = block_top(scores.flatten(0, 1), self.k, BLOCK)[1].view(*scores.shape[:2], self.k)
        return scores.gather(2, ids), ids

    def read(self, *, sparse: bool = False) -> Tensor:
        """Add the values of all heads, `[queries, value_dim]`."""
        scores, ids = self.lookup()
        ids, weights = (x.transpose(0, 1).flatten(1) for x in (ids, torch.softmax(scores, 2)))
        return torch.nn.functional.embedding_bag(ids, self.table, per_sample_weights=weights, mode="sum", sparse=sparse)


def lookup(problem: Problem) -> Job:
    """Look up slots by two products, two `topk`, all sums, `topk`."""
    return _lookup(problem, Layer(problem))


def lookup_tuned(problem: Problem) -> Job:
    """Look up slots by block maxima, and sums of the pairs that can win."""
    return _lookup(problem, Layer(problem, tuned=True))


def _lookup(problem: Problem, layer: Layer) -> Job:
    def run() -> Answer:
        scores, ids = layer.lookup()
        return {"ids": ids.numpy(), "scores": scores.numpy()}

    return Job(run, problem.case.nbytes / problem.case.slots)


def read(problem: Problem) -> Job:
    """Go forward through the layer, with `embedding_bag` for the values."""
    return _read(problem, Layer(problem))


def read_tuned(problem: Problem) -> Job:
    """Go forward with the tuned lookup."""
    return _read(problem, Layer(problem, tuned=True))


def _read(problem: Problem, layer: Layer) -> Job:
    return Job(lambda: {"out": layer.read().numpy()[None]}, problem.case.nbytes / problem.case.slots)


def train(problem: Problem) -> Job:
    """Go forward and backward; autograd leaves a row of the values' gradient for each slot of each query."""
    return _train(problem, Layer(problem))


def train_tuned(problem: Problem) -> Job:
    """Train with the tuned lookup."""
    return _train(problem, Layer(problem, tuned=True))


def train_coalesced(problem: Problem) -> Job:
    """Train with the tuned lookup, and rows of one slot added up, as `SparseAdam` needs them."""
    return _train(problem, Layer(problem, tuned=True), coalesced=True)


def _train(problem: Problem, layer: Layer, *, coalesced: bool = False) -> Job:
    gradient = layer.table[-problem.case.queries :].clone()
    for leaf in (layer.queries, *layer.halves, layer.table):
        leaf.requires_grad_()

    def run() -> Answer:
        with torch.enable_grad():
            out = layer.read(sparse=True)
            return product_answer(out, gradient, layer.queries, layer.halves, layer.table, coalesced=coalesced)

    return Job(run, problem.case.nbytes / problem.case.slots)
