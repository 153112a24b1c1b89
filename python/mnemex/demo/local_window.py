"""The baseline without a memory: a transformers cache that keeps the first few tokens and the last ones, no others.

It holds exactly the rows that the attachment's cache holds locally, and throws away what that one sends to memory, so
the difference between the two is what the memory is worth.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class LocalWindow(Cache):
    """A cache of the last `window` tokens and the first `sinks` ones, every token at its true position.

    Between calls it holds the last `window - 1`. A chunk of tokens attends to all of itself and to those, so its first
    token sees `window` tokens and its later ones more.

    Notes
    -----
    Without the first tokens, models that were trained with full attention break down as soon as these leave the
    window: "attention sinks", Xiao et al., 2024.
    """

    def __init__(self, n_layers: int, *, window: int, sinks: int) -> None:
        super().__init__(layers=[_LocalLayer(window, sinks) for _ in range(n_layers)])


class _LocalLayer(DynamicLayer):
    def __init__(self, window: int, sinks: int) -> None:
        super().__init__()
        self.window, self.sinks, self.total = window, sinks, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self.total += key_states.shape[-2]
        self.keys, self.values = self._kept(keys), self._kept(values)
        return keys, values

    def _kept(self, states: Tensor) -> Tensor:
        n_drop = states.shape[-2] - self.sinks - (self.window - 1)
        if n_drop <= 0:
            return states
        return torch.cat([states[..., : self.sinks, :], states[..., self.sinks + n_drop :, :]], -2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # Sinks count as the tokens just before the window: all that matters to a causal mask is that they are past.
        held = super().get_seq_length()
        return held + query_length, self.total - held

    def get_seq_length(self) -> int:
        return self.total
