"""Pairs that local tokens look up for each other, prepended to the local keys and values: the reader `mnemex.Shared`.

Each local token looks up entries by its own key. What it finds belongs to its place: a query that may attend to the
token may attend to its pairs. So the mask of the pairs is the local one, and the far side is attention over keys at
hand, which the local side's two implementations answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnemex.torch.local import Mask, Scoring, prepare
from mnemex.torch.retrieved import threads_for

if TYPE_CHECKING:
    from mnemex import Bank, Snapshot
    from mnemex.parts import Shared


class Pairs(NamedTuple):
    """Keys and values `[B, Hkv, k * K, D]`: the best of every local token, then the second best of every one, and on.

    Without a `mask`, query i sees the pairs of the tokens 0 to i if `causal`, else all.
    """

    keys: Tensor
    values: Tensor
    mask: Mask | None
    causal: bool

    def scoring(self, local: Scoring) -> Scoring:
        """Say how scores become weights; what is dropped out is local."""
        return local._replace(causal=self.causal, dropout=0.0)


def look_up(
    memory: Bank | Snapshot, by: Tensor, reader: Shared, query: Tensor, mask: Mask | None, *, causal: bool
) -> Pairs:
    """Look up the entries of every local token by its key.

    Parameters
    ----------
    memory
        Chooses by its own metric, in each key/value head.
    by
        Keys of the local tokens, as the memory sees them, `[B, Hkv, K, Dk]`.
    reader
        How many entries a token looks up.
    query
        `[B, Hq, Q, Dk]`; its dtype and device are those of the pairs.
    mask, causal
        Which local tokens each query may attend to. Numbers that a mask adds to local scores are not added to pairs.
    """
    work = by.numel() * int(np.max(memory.lengths, initial=0))
    found = memory.search(
        by.detach().float().cpu(), reader.k, nonfinite="keep", threads=threads_for(by.device, work, work)
    )
    ids = torch.from_numpy(found.ids)  # [B, Hkv, K, k]
    batch, heads, n_keys, k = ids.shape
    keys, values = (
        torch.from_numpy(x).to(query).transpose(2, 3).flatten(2, 3)  # the best of all tokens, then the second best
        for x in memory.gather(found)
    )
    there = (ids >= 0).transpose(2, 3).reshape(batch, heads, 1, k * n_keys).to(query.device)
    complete = bool(there.all())
    if complete and mask is None and (k == 1 or not causal):
        return Pairs(keys, values, None, causal)
    if mask is not None:
        seen = mask.additive.detach() != -torch.inf  # [1 or B, 1 or Hq, Q, K]
    else:
        seen = torch.ones(1, 1, query.shape[2], n_keys, dtype=torch.bool, device=query.device)
    if causal:
        seen = seen.tril()
    seen = seen.repeat(1, 1, 1, k)
    if not complete:
        seen = seen & there.repeat_interleave(query.shape[1] // heads, 1)
    return Pairs(keys, values, prepare(seen, query.dtype), causal=False)
