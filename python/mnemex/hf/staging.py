"""Keys and values of one stretch of tokens, staged in every layer under the same ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mnemex.errors import NonFinite
from mnemex.torch.stored import Staged, as_taken, stage, take_back

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mnemex import Memory
    from mnemex.hf.window import Bools, Ints


@dataclass
class Counts:
    """Tokens staged, and tokens left out because a key or value was NaN, infinite, or more than the bank can hold."""

    written: int = 0
    nonfinite: int = 0


def stage_tokens(
    memory: Memory,
    layers: Mapping[int, tuple[Tensor, Tensor]],
    *,
    positions: Ints,
    mask: Bools | None,
    counts: Counts,
) -> Ints:
    """Stage `[rows, heads, T, dim]` keys and values of every layer; the ids `[rows, T]`, -1 for tokens left out.

    What is wider than a bank holds is rounded to what it does hold. A token with a non-finite key or value in any layer
    is left out of all, so that ids stay in step. Where this fails, nothing of it is staged.
    """
    staged: Staged = []
    ids = np.zeros((memory.rows, 0), np.int64)
    try:
        # The last layer first: what is not finite in one layer is hardly ever finite in those above it.
        for index in sorted(layers, reverse=True):
            ids = stage(memory[index], *layers[index], positions=positions, mask=mask)
            staged.append((memory[index], ids))
    except NonFinite:
        take_back(staged)
        finite = _finite([as_taken(memory[index], *pair) for index, pair in layers.items()])
        before = np.ones_like(finite) if mask is None else mask
        if not (before & ~finite).any():
            raise
        counts.nonfinite += int((before & ~finite).sum())
        return stage_tokens(memory, layers, positions=positions, mask=before & finite, counts=counts)
    except BaseException:
        take_back(staged)
        raise
    counts.written += int((ids >= 0).sum())
    written = positions if mask is None else positions[mask]
    memory.next_position = max(next_position(memory), int(written.max(initial=-1)) + 1)
    return ids


def next_position(memory: Memory) -> int:
    """Tell the position after the last one that was written; 0 for an empty memory."""
    return memory.next_position if len(memory) else 0


def _finite(layers: list[tuple[Tensor, Tensor]]) -> Bools:
    fine = [torch.isfinite(x).all(-1).all(1) for pair in layers for x in pair]  # [rows, T] each
    return torch.stack(fine).all(0).cpu().numpy()
