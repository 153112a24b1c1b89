"""The tensors of one attached layer: sinks, window and new keys side by side, ready for attention.

Attention does not care in which order keys stand, so the sinks stand just before the window and move along with it:
a few rows are copied per step instead of the whole window. Between forward passes the rows stand in a buffer of this
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
    """One layer of a `WindowCache`.

    Attributes
    ----------
    keys, values
        What attention sees: sinks, window and new tokens `[rows, heads, n, dim]`. A model must hand these very objects
        to its attention.
    total
        Tokens seen, those of an open forward pass included.
    """

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
        self.is_initialized = False
        self.total = 0
        # Keys and values; local are the rows [start - n_sinks, stop), and the sinks stand apart as well.
        self._buffers: tuple[Tensor, ...] = ()
        self._sinks: tuple[Tensor, ...] = ()
        self._start = self._stop = self._n_sinks = 0
        self._owned = False
        self._before: tuple[tuple[Tensor, ...], int, int, bool] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers and sinks."""
        return sum(t.untyped_storage().nbytes() for t in (*self._buffers, *self._sinks))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002 - their signature
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
        new = (key_states, value_states)
        self._before = (self._buffers, self._start, self._stop, self._owned)
        if self._writable() and self._stop + n <= self._buffers[0].shape[2] and not key_states.requires_grad:
            for buffer, states in zip(self._buffers, new, strict=True):
                buffer[:, :, self._stop : self._stop + n] = states
            self._stop += n
        elif self._buffers:
            first = self._start - self._n_sinks
            self._buffers = tuple(
                torch.cat([buffer[:, :, first : self._stop], states], 2)
                for buffer, states in zip(self._buffers, new, strict=True)
            )
            self._start, self._stop, self._owned = self._n_sinks, self._buffers[0].shape[2], False
        else:
            self._buffers, self._start, self._stop, self._owned = new, 0, n, False
        self.total += n
        self._show()
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _writable(self) -> bool:
        """Whether the buffers are this layer's alone, and no backward pass or inference mode holds them."""
        return (
            self._owned
            and not self._buffers[0].requires_grad
            and (torch.is_inference_mode_enabled() or not self._buffers[0].is_inference())
        )

    def _show(self) -> None:
        first = self._start - self._n_sinks
        self.keys, self.values = (buffer[:, :, first : self._stop] for buffer in self._buffers)

    def undo(self, total: int) -> None:
        """Take the last update back, unless it was before `total` columns were seen."""
        if self.total > total and self._before is not None:
            self._buffers, self._start, self._stop, self._owned = self._before
            self.total = total
            if self._buffers:
                self._show()
            else:
                self._clear()
        self._before = None

    def oldest(self, n: int) -> tuple[Tensor, Tensor]:
        """Show the oldest `n` keys and values of the window, `[rows, heads, n, dim]`."""
        keys, values = (buffer[:, :, self._start : self._start + n] for buffer in self._buffers)
        return keys, values

    def make_sinks(self, n_slots: int, rows: Tensor, slots: Tensor, columns: Tensor) -> None:
        """Copy columns of the window, counted from its start, into sink slots."""
        if not self._sinks:
            self._sinks = tuple(b.new_zeros(*b.shape[:2], n_slots, b.shape[3]) for b in self._buffers)
        else:
            # Out of place, as a backward pass or inference mode may hold the old ones.
            self._sinks = tuple(sinks.clone() for sinks in self._sinks)
        for sinks, buffer in zip(self._sinks, self._buffers, strict=True):
            sinks[rows, :, slots] = buffer[rows, :, self._start + columns]

    def settle(self, n: int, n_sinks: int) -> None:
        """Keep the newest `n` tokens of the window, behind `n_sinks` sinks."""
        self._before = None
        self._start, self._n_sinks = self._stop - n, n_sinks
        if self._writable():
            for buffer, sinks in zip(self._buffers, self._sinks, strict=False):
                buffer[:, :, self._start - n_sinks : self._start] = sinks[:, :, :n_sinks]
        else:
            self._buffers = tuple(self._moved(i, n) for i in range(2))
            self._start, self._stop, self._owned = n_sinks, n_sinks + n, True
        self._show()

    def _moved(self, i: int, n: int) -> Tensor:
        """Copy sinks and window to a new buffer with room behind them."""
        old = self._buffers[i]
        parts = [old[:, :, self._stop - n : self._stop], old.new_empty(*old.shape[:2], max(ROOM, n // 2), old.shape[3])]
        if self._sinks:
            parts.insert(0, self._sinks[i][:, :, : self._n_sinks])
        return torch.cat(parts, 2)

    def shorten(self, total: int, n: int, n_sinks: int) -> None:
        """Keep the oldest `n` tokens of the window, of `total` columns seen."""
        self.total = total
        self._stop = self._start + n
        if n_sinks == self._n_sinks:
            self._show()
        else:
            self.settle(n, n_sinks)

    def select(self, index: Tensor) -> None:
        """Let row i become what row `index[i]` was."""
        if not self._buffers:
            return
        index = index.to(self.device)
        self._buffers = tuple(buffer.index_select(0, index) for buffer in self._buffers)
        self._sinks = tuple(sinks.index_select(0, index) for sinks in self._sinks)
        self._show()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the tensors of this layer alone; the cache does it with the memory."""
        self.select(beam_idx)

    def reset(self) -> None:
        """Forget every token of this layer."""
        self._clear()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tell the columns of the mask and where they start, as if the local keys were the newest in one piece."""
        if self.cache.forward is None:
            self.cache.refuse_outside()
        if self.cache.full_masks:
            return self.total + query_length, 0
        n_local = self._stop - self._start + self._n_sinks
        return n_local + query_length, self.total - n_local

    def get_seq_length(self) -> int:
        """Tell the tokens of completed forward passes, in memory and in the window."""
        return self.cache.rows.total

    def get_max_length(self) -> int:
        """There is no maximum."""
        return -1
