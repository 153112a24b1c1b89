"""Consolidation in torch, all lanes and tokens at once: one product, one maximum, one scatter."""

from __future__ import annotations

import numpy as np
import torch

from benches.engines import Answer, Job, Problem
from benches.engines.torch_topk import VERSION, isa
from benches.reference import CONSOLIDATED
from benches.workloads import Arrivals

__all__ = ["VERSION", "isa"]


def consolidate(problem: Problem) -> Job:
    """Merge what is near, and put the rest in the place of the slots that were left alone longest."""
    torch.set_num_threads(problem.threads)
    case, arrivals = problem.case, Arrivals(problem.case, problem.data)
    keys, values = torch.from_numpy(problem.data.keys.copy()), torch.from_numpy(problem.values.copy())
    units = torch.nn.functional.normalize(keys, dim=-1)
    counts = torch.ones(case.lanes, case.entries)
    # When each slot was touched last, and in which order slots of one step were: unique, so the oldest are known.
    touched = torch.arange(case.entries).repeat(case.lanes, 1)
    first = torch.arange(case.lanes)[:, None] * case.entries
    clock = case.entries

    def run() -> Answer:
        nonlocal clock
        new_keys, new_values = map(torch.from_numpy, arrivals.next())
        new_units = torch.nn.functional.normalize(new_keys, dim=-1)
        best, nearest = (new_units @ units.transpose(1, 2)).max(-1)
        near = best >= CONSOLIDATED
        n = torch.zeros_like(counts).scatter_add_(1, nearest, near.float())
        merged = (nearest + first)[near]
        hit = n.view(-1).nonzero().squeeze(1)
        shrink, share = counts / (counts + n), 1.0 / (counts + n).view(-1)[merged, None]
        for old, new in ((keys, new_keys), (values, new_values)):
            flat = old.view(-1, case.dim)
            flat[hit] *= shrink.view(-1)[hit, None]
            flat.index_add_(0, merged, new[near] * share)
        counts.add_(n)
        slots = torch.arange(case.entries)
        touched.copy_(torch.where(n > 0, clock + slots, touched))
        # As many of the oldest as there are new tokens, lane by lane in the order of both.
        fresh = ~near
        most, target = int(fresh.sum(1).max()), hit[:0]
        if most:
            oldest = touched.topk(most, largest=False, sorted=True).indices
            rank = fresh.long().cumsum(1) - 1
            target = (oldest.gather(1, rank.clamp(0, most - 1)) + first)[fresh]
            keys.view(-1, case.dim)[target] = new_keys[fresh]
            values.view(-1, case.dim)[target] = new_values[fresh]
            counts.view(-1)[target] = 1.0
            touched.view(-1)[target] = (clock + case.entries + torch.arange(case.chunk).expand_as(fresh))[fresh]
        changed = torch.cat([hit, target])
        units.view(-1, case.dim)[changed] = torch.nn.functional.normalize(keys.view(-1, case.dim)[changed], dim=-1)
        clock += 2 * case.entries
        return {}

    def explain() -> Answer:
        # Slots that were there before in their order, then the new ones as they arrived.
        arrived = torch.where(touched >= 2 * case.entries, touched, torch.arange(case.entries))
        order = arrived.argsort(1)[..., None].expand(-1, -1, case.dim)
        return {"keys": np.asarray(keys.gather(1, order)), "values": np.asarray(values.gather(1, order))}

    return Job(run, 12.0 * case.dim, explain)
