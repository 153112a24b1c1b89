"""The tensors of one attached layer: sinks, window and new keys side by side, ready for attention.

Attention does not care in which order keys stand, so the sinks stand just before the window and move along with it:
four rows are copied per step instead of the whole window. Between forward passes the rows stand in a buffer of this
layer's own, with room at its end; a prefill is handed through without a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

if TYPE_CHECKING:
    from mnemex.hf.cache import WindowCache

ROOM = 64
"""Least number of tokens a buffer has room for behind its window, before it is moved; otherwise half a window."""


class WindowLayer(CacheLayerMixin):
    """One layer of a `WindowCache`; rows `[start - n_sinks, stop)` of the buffers are local."""

    is_sliding = False
    is_croppable = True
    is_compileable = False
    supports_early_init = False

    def __init__(self, cache: WindowCache) -> None:
        super().__init__()
        self.cache = cache
        self._clear()

    def _clear(self) -> None:
        self.keys = self.values = None
        self.sink_keys = self.sink_values = None
        self.is_initialized = False
        self.total = self.start = self.stop = self.n_sinks = 0
        self.handed: tuple[Tensor, Tensor] | None = None
        self._owned = False
        self._before: tuple[Tensor | None, Tensor | None, int, int, bool] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002 - the signature of transformers
        """Note dtype and device, for transformers."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Take new keys and values in; return everything local."""
        if self.cache.forward is None:
            self.cache.refuse_outside()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n = key_states.shape[2]
        self._before = (self.keys, self.values, self.start, self.stop, self._owned)
        if self._has_room(n, key_states):
            end = self.stop + n
            self.keys[:, :, self.stop : end] = key_states
            self.values[:, :, self.stop : end] = value_states
            self.stop = end
        else:
            self._grow(key_states, value_states)
        self.total += n
        first = self.start - self.n_sinks
        self.handed = self.keys[:, :, first : self.stop], self.values[:, :, first : self.stop]
        return self.handed

    def _has_room(self, n: int, key_states: Tensor) -> bool:
        return self._writable() and self.stop + n <= self.keys.shape[2] and not key_states.requires_grad

    def _writable(self) -> bool:
        """Whether the buffers are this layer's alone, and no backward pass or inference mode holds them."""
        return (
            self._owned
            and not self.keys.requires_grad
            and (torch.is_inference_mode_enabled() or not self.keys.is_inference())
        )

    def _grow(self, key_states: Tensor, value_states: Tensor) -> None:
        if self.keys is None:
            self.keys, self.values, self.start, self.stop = key_states, value_states, 0, key_states.shape[2]
        else:
            first = self.start - self.n_sinks
            self.keys = torch.cat([self.keys[:, :, first : self.stop], key_states], 2)
            self.values = torch.cat([self.values[:, :, first : self.stop], value_states], 2)
            self.start, self.stop = self.n_sinks, self.keys.shape[2]
        self._owned = False

    def undo(self, total: int) -> None:
        """Take the last update back, unless it was before `total` columns were seen."""
        self.handed = None
        if self.total > total and self._before is not None:
            self.keys, self.values, self.start, self.stop, self._owned = self._before
            self.total = total
        self._before = None

    def oldest(self, n: int) -> tuple[Tensor, Tensor]:
        """Show the oldest `n` keys and values of the window, `[rows, heads, n, dim]`."""
        return self.keys[:, :, self.start : self.start + n], self.values[:, :, self.start : self.start + n]

    def make_sinks(self, n_slots: int, rows: Tensor, slots: Tensor, columns: Tensor) -> None:
        """Copy columns of the window, counted from its start, into sink slots."""
        if self.sink_keys is None:
            shape = (self.keys.shape[0], self.keys.shape[1], n_slots)
            self.sink_keys = self.keys.new_zeros(*shape, self.keys.shape[3])
            self.sink_values = self.values.new_zeros(*shape, self.values.shape[3])
        else:
            # Out of place, as a backward pass or inference mode may hold the old ones.
            self.sink_keys, self.sink_values = self.sink_keys.clone(), self.sink_values.clone()
        self.sink_keys[rows, :, slots] = self.keys[rows, :, self.start + columns]
        self.sink_values[rows, :, slots] = self.values[rows, :, self.start + columns]

    def settle(self, n: int, n_sinks: int) -> None:
        """Keep the newest `n` tokens of the window, behind `n_sinks` sinks."""
        self.handed = self._before = None
        self.start = self.stop - n
        self.n_sinks = n_sinks
        if self._writable():
            first = self.start - n_sinks
            if n_sinks:
                self.keys[:, :, first : self.start] = self.sink_keys[:, :, :n_sinks]
                self.values[:, :, first : self.start] = self.sink_values[:, :, :n_sinks]
        else:
            self.keys = self._buffer(self.keys, self.sink_keys, n)
            self.values = self._buffer(self.values, self.sink_values, n)
            self.start, self.stop, self._owned = n_sinks, n_sinks + n, True

    def _buffer(self, old: Tensor, sinks: Tensor | None, n: int) -> Tensor:
        rows, heads, _, dim = old.shape
        window = old[:, :, self.stop - n : self.stop]
        parts = [window] if sinks is None else [sinks[:, :, : self.n_sinks], window]
        return torch.cat([*parts, old.new_empty(rows, heads, max(ROOM, n // 2), dim)], 2)

    def crop(self, total: int, n: int, n_sinks: int) -> None:
        """Keep the oldest `n` tokens of the window, of `total` columns seen."""
        self.total = total
        self.stop = self.start + n
        if n_sinks != self.n_sinks:
            self.settle(n, n_sinks)

    def select(self, index: Tensor) -> None:
        """Let row i become what row `index[i]` was."""
        if self.keys is None:
            return
        index = index.to(self.keys.device)
        self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)
        if self.sink_keys is not None:
            self.sink_keys = self.sink_keys.index_select(0, index)
            self.sink_values = self.sink_values.index_select(0, index)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the tensors of this layer alone; the cache does it with the memory."""
        self.select(beam_idx)

    def reset(self) -> None:
        """Forget every token of this layer."""
        self._clear()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask and where they start, as if the local keys were the newest in one piece."""
        if self.cache.forward is None:
            self.cache.refuse_outside()
        if self.cache.full_masks:
            return self.total + query_length, 0
        n_local = self.stop - self.start + self.n_sinks
        return n_local + query_length, self.total - n_local

    def get_seq_length(self) -> int:
        """Tokens of completed forward passes, in memory and in the window."""
        return self.cache.rows.total

    def get_max_length(self) -> int:
        """There is no maximum."""
        return -1
