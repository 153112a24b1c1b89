"""One step of training with a memory: a segment attends to itself and to its best entries, and is written.

A step reads, goes backward from a given gradient of the output, and writes as many entries as the segment has tokens,
first in, first out. What is written is what is about to leave, so that the memory holds the same entries after any
number of steps and every step has the same right answer. The segment's own keys and values are the first entries'.

`Ring` is the memory of the peers: arrays written in a circle, as one makes them by hand. `Peer` is what they share:
everything but the choice of entries, as one writes it in torch, with autograd for the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benches.engines import BF16_SCAN, F32_SCAN, Answer, Job, Problem

if TYPE_CHECKING:
    from benches.workloads import Floats

Choose = Callable[["Ring", Tensor], Tensor]
"""Finds the ids of the best entries `[lanes, queries, k]`, in any order."""


class Segment:
    """Queries, keys and values `[lanes, queries, dim]` that want gradients, and the gradient of the output."""

    def __init__(self, problem: Problem) -> None:
        data, n = problem.data, problem.case.queries
        arrays = (data.queries, data.keys[:, :n], problem.values[:, :n])
        self.queries, self.keys, self.values = (torch.tensor(array).requires_grad_() for array in arrays)
        self.gradient = torch.tensor(problem.values[:, -n:])

    def answer(self, out: Tensor) -> Answer:
        """Go backward, and take the gradients away for the next step."""
        out.backward(self.gradient)
        answer = {"out": out.detach().numpy()}
        for name, x in (("grad_q", self.queries), ("grad_k", self.keys), ("grad_v", self.values)):
            assert x.grad is not None
            answer[name], x.grad = x.grad.numpy(), None
        return answer


def product_answer(
    out: Tensor, gradient: Tensor, queries: Tensor, halves: Iterable[Tensor], table: Tensor, *, coalesced: bool = False
) -> Answer:
    """Go backward through a product-key layer, and take the gradients away for the next step.

    Queries are `[queries, heads, 2 dim]`; the gradient of the table is sparse, and made to have one row of an id where
    it is to be `coalesced`.
    """
    out.backward(gradient)
    answer = {"out": out.detach().numpy()[None]}
    for name, x in zip(("grad_q", "grad_rows", "grad_columns"), (queries, *halves), strict=True):
        assert x.grad is not None
        answer[name], x.grad = x.grad.numpy(), None
    assert table.grad is not None
    of_table, table.grad = table.grad.coalesce() if coalesced else table.grad, None
    answer["touched"], answer["grad_v"] = of_table._indices()[0].numpy(), of_table._values().numpy()
    return {**answer, "grad_q": answer["grad_q"].swapaxes(0, 1)}


class Turn:
    """Which entries are written next: a run of `chunk` of them, round and round."""

    def __init__(self, entries: int, chunk: int) -> None:
        assert entries % chunk == 0, "a run of entries must not go over the end"
        self._entries, self._chunk, self._at = entries, chunk, 0

    def next(self) -> slice:
        """Return the run, and go on."""
        run = slice(self._at, self._at + self._chunk)
        self._at = run.stop % self._entries
        return run


class Ring:
    """Keys and values in arrays of fixed size, `[lanes, entries, dim]`, and the keys in bfloat16 where asked for."""

    def __init__(self, problem: Problem, *, short: bool = False) -> None:
        self.source_keys, self.source_values = torch.from_numpy(problem.data.keys), torch.from_numpy(problem.values)
        self.keys, self.values = self.source_keys.clone(), self.source_values.clone()
        self.short = self.keys.bfloat16() if short else None
        self._turn = Turn(problem.case.entries, problem.case.chunk)

    def write(self) -> None:
        """Write the next run over what it takes the place of."""
        run = self._turn.next()
        self.keys[:, run] = self.source_keys[:, run]
        self.values[:, run] = self.source_values[:, run]
        if self.short is not None:
            self.short[:, run] = self.source_keys[:, run].bfloat16()


def peer(problem: Problem, choose: Choose, *, short: bool = False) -> Job:
    """Make a job from a way to choose entries."""
    torch.set_num_threads(problem.threads)
    case = problem.case
    segment, ring = Segment(problem), Ring(problem, short=short)
    scale = case.dim**-0.5
    first = torch.arange(case.lanes)[:, None, None] * case.entries
    later = torch.ones(case.queries, case.queries, dtype=torch.bool).triu(1)
    shape = (case.lanes, case.queries, problem.k, case.dim)

    def run() -> Answer:
        with torch.no_grad():
            places = (choose(ring, segment.queries) + first).view(-1)
            keys = ring.keys.view(-1, case.dim).index_select(0, places).view(shape)
            values = ring.values.view(-1, case.dim).index_select(0, places).view(shape)
        with torch.enable_grad():
            queries = segment.queries * scale
            near = (queries @ segment.keys.transpose(1, 2)).masked_fill(later, -torch.inf)
            far = (keys @ queries[..., None]).squeeze(-1)
            weights = torch.softmax(torch.cat([near, far], -1), -1)
            of_near, of_far = weights.split([case.queries, problem.k], -1)
            out = of_near @ segment.values + (of_far[..., None, :] @ values).squeeze(-2)
            answer = segment.answer(out)
        ring.write()
        return answer

    return Job(run, (10.0 if short else 8.0) * case.dim, scan=BF16_SCAN if short else F32_SCAN)


def arrays(ring: Ring, queries: Tensor) -> tuple[Floats, Floats]:
    """Return keys and queries as numpy arrays, without a copy."""
    return ring.keys.numpy(), queries.detach().numpy()
