"""Keys and values of one stretch of tokens, staged in every layer under the same ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mnemex.errors import NonFinite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mnemex import Memory
    from mnemex.hf.window import Bools, Ints


@dataclass
class Counts:
    """Tokens staged, and tokens left out because a key or value was NaN or infinite."""

    written: int = 0
    nonfinite: int = 0


def stage_tokens(
    memory: Memory,
    layers: Mapping[int, tuple[Tensor, Tensor]],
    *,
    positions: Ints,
    mask: Bools | None,
    counts: Counts,
    alone: bool,
) -> Ints:
    """Stage `[rows, heads, T, dim]` keys and values of every layer; the ids `[rows, T]`, -1 for tokens left out.

    A token with a non-finite key or value in any layer is left out of all, so that ids stay in step. Where that is
    found out with some layers staged, they are staged again, if this call is `alone`: nothing was staged before it.
    Otherwise ids may differ between layers from here on.
    """
    written = positions if mask is None else positions[mask]
    after = max(next_position(memory), int(written.max(initial=-1)) + 1)
    ids: Ints | None = None
    # The last layer first: what is not finite in one layer is hardly ever finite in those above it.
    for index in sorted(layers, reverse=True):
        keys, values = (x.detach() for x in layers[index])
        try:
            staged = memory.stage(index, keys, values, positions=positions, mask=mask)
        except NonFinite:
            finite = _finite(list(layers.values()))
            before = np.ones_like(finite) if mask is None else mask
            counts.nonfinite += int((before & ~finite).sum())
            mask = before & finite
            if alone and ids is not None:
                memory.rollback()
                return stage_tokens(memory, layers, positions=positions, mask=mask, counts=counts, alone=True)
            staged = memory.stage(index, keys, values, positions=positions, mask=mask)
        ids = staged if ids is None else ids
    if ids is None:
        raise ValueError("no layer to stage")
    counts.written += int((ids >= 0).sum())
    memory.next_position = after
    return ids


def next_position(memory: Memory) -> int:
    """Tell the position after the last one that was written; 0 for an empty memory."""
    return memory.next_position if len(memory) else 0


def _finite(layers: list[tuple[Tensor, Tensor]]) -> Bools:
    fine = [torch.isfinite(x.detach()).all(-1).all(1) for pair in layers for x in pair]  # [rows, T] each
    return torch.stack(fine).all(0).cpu().numpy()
