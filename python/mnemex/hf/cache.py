"""A transformers cache whose attached layers keep a window, and let the rest go to the memory.

Local keys and entries of the memory are disjoint and together complete at every step, and keys keep the positions the
model gave them, so reading every entry reproduces `DynamicCache`. The attention function must join the two sides, so
this cache raises wherever that function is not in charge. Layers that are not attached keep what `DynamicCache` gives
them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from mnemex.errors import ArgumentError, Error, ShapeError, Unsupported
from mnemex.hf.rotary import WindowAngles
from mnemex.hf.staging import stage_tokens
from mnemex.hf.window import Eviction, Ints, WindowRows
from mnemex.hf.window_layer import WindowLayer
from mnemex.torch import checks

if TYPE_CHECKING:
    from mnemex import Memory
    from mnemex.hf.attachment import Attachment
    from mnemex.hf.forward import ModelForward

writers: WeakKeyDictionary[Memory, ref[WindowCache]] = WeakKeyDictionary()
"""The cache that may write to each memory, whichever attachment made it: the newest."""


def self_attention_cache(past: Any) -> Any:  # noqa: ANN401 - any cache of transformers
    """Find the cache of the layers that a memory is attached to: of an encoder-decoder's two, the decoder's own."""
    return past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past


class WindowCache(Cache):
    """Cache for `generate` and for forward passes: window and sinks local, the rest in memory.

    Made by `Attachment.cache`. At the end of each top-level forward pass, what left the window is committed. Rows
    follow beam search and batching: `reorder_cache`, `batch_repeat_interleave` and `batch_select_indices` move the
    rows of the memory too, `crop` and `reset` take back what this cache put there. A deep copy has a memory of its
    own, which shares every block with the first until one of them writes.

    Attributes
    ----------
    memory
        The memory this cache reads and writes: the attachment's, unless it is a copy.
    window
        Tokens that are local: the current one and the `window - 1` before it. A longer chunk attends to all of itself.
    sinks
        First tokens of each row (pads aside) that stay local for good.
    """

    def __init__(self, attachment: Attachment, *, window: int, sinks: int) -> None:
        window, sinks = checks.count("window", window), checks.count("sinks", sinks, low=0)
        stack = attachment.stack
        if stack.kind == "encoder":
            raise Unsupported(f"{stack.name} is an encoder, which keeps no cache: attach with write='all' instead")
        if stack.expands_cached_keys:
            raise Unsupported(
                f"{stack.name} caches latents and makes keys and values of them afterwards (MLA), so a cache cannot "
                "put them into a memory: attach with write='all' instead"
            )
        layers: list[Any] = DynamicCache(config=stack.config).layers
        full = [i for i, layer in enumerate(layers) if type(layer) is DynamicLayer]
        self.attached = {index: WindowLayer(self) for index in attachment.modules}
        self.others = [layer for index, layer in enumerate(layers) if index not in self.attached]
        super().__init__(layers=[self.attached.get(index, layer) for index, layer in enumerate(layers)])
        self.window, self.sinks = window, sinks
        self.memory: Memory = attachment.memory
        self.rows = WindowRows(sinks)
        self._angles = WindowAngles()
        # One mask serves all layers that see their whole past; a layer without memory needs every column of it.
        self.full_masks = any(index not in self.attached for index in full)
        self.forward: ModelForward | None = None
        self.shift: int | None = None
        self._attachment = attachment
        # Where the memory ended before anything of this cache was in it.
        self._continues = self.memory.next_position
        self._broken = False

    def __repr__(self) -> str:
        return f"WindowCache(window={self.window}, sinks={self.sinks}, tokens={self.rows.total}, nbytes={self.nbytes})"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of all layers, the memory not counted."""
        tensors = [t for layer in self.others for t in vars(layer).values() if isinstance(t, Tensor)]
        return sum(layer.nbytes for layer in self.attached.values()) + sum(t.nbytes for t in tensors)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - the signature of transformers
        """Tokens of completed forward passes, the same in every layer."""
        return self.rows.total

    def begin(self, forward: ModelForward) -> None:
        """Enter a top-level forward pass of the attached model."""
        if self.forward is not None:
            # Interrupted from the keyboard, which skips forward hooks.
            self.abort()
        if self._attachment is not forward.attachment or not forward.attachment.attached:
            self.refuse_outside()
        newest = writers.get(self.memory)
        if self.memory is forward.attachment.memory and (newest is None or newest() is not self):
            raise Error("a newer cache writes to this memory: use that one, or copy.deepcopy this one")
        if self._broken:
            raise Error("an earlier forward pass failed halfway through this cache: reset() it")
        if self.rows.n_rows == 0:
            forward.attachment.take_rows(self.memory, forward.batch)
            self.rows.begin(forward.batch)
        elif self.rows.n_rows != forward.batch:
            raise ShapeError(f"the batch has {forward.batch} rows, this cache has {self.rows.n_rows}")
        if self.others and self.rows.total and forward.n_queries > 1:
            self._attachment.recurrence.check("give the next prompt a new cache, and read each prompt in one piece")
        self.forward = forward

    def end(self, forward: ModelForward) -> None:
        """Leave the forward pass: what no longer fits the window goes to the memory, and is committed."""
        self.forward = None
        self._broken = True
        behind = [i for i, layer in self.attached.items() if layer.total != self.rows.total + forward.n_queries]
        if behind:
            raise Error(f"layers {behind} did not update this cache during the forward pass; reset() it")
        self.rows.append(forward.positions, forward.valid)
        rotary = self._attachment.rotary
        for group in set(rotary.leaders.values()) if rotary is not None else ():
            angles = rotary.angles(group, forward.given.get(group)) if rotary is not None else None
            if angles is not None:
                self._angles.append(group, angles, forward.batch)
        n = self.rows.n - (self.window - 1)
        try:
            told = forward.tell_use(self.memory)
            if n > 0:
                self._evict(self.rows.evict(n), forward)
            if told:
                # Where nothing left the window, or pads alone did.
                self.memory.commit()
        except BaseException:
            self.memory.rollback()
            raise
        for layer in self.attached.values():
            layer.settle(self.rows.n, self.rows.n_sinks)
        self._broken = False

    def abort(self) -> None:
        """Forget a forward pass that failed."""
        self.forward = None
        for layer in self.attached.values():
            layer.undo(self.rows.total)
        self._broken = bool(self.others)

    def _evict(self, eviction: Eviction, forward: ModelForward) -> None:
        oldest = {index: layer.oldest(eviction.n) for index, layer in self.attached.items()}
        rotary = self._attachment.rotary
        if rotary is not None:
            for index, (keys, values) in oldest.items():
                angles = self._angles.oldest(rotary.leaders[index], eviction.n)
                oldest[index] = (rotary.plain(index, keys.detach(), angles), values)
            self._angles.cut(eviction.n, eviction.n + self.rows.n)
        stored = eviction.stored
        if stored is None or stored.any():
            if not any(self.rows.runs):
                self._continues = self.memory.next_position
            try:
                ids = stage_tokens(
                    self.memory,
                    oldest,
                    positions=eviction.positions,
                    mask=stored,
                    counts=forward.attachment.counts,
                )
                self.memory.commit()
            except BaseException:
                self.memory.rollback()
                raise
            forward.attachment.staged = ids
            self.rows.record(eviction.first, ids)
        if eviction.sinks is not None:
            rows, slots, columns = (torch.from_numpy(x) for x in eviction.sinks)
            for layer in self.attached.values():
                layer.make_sinks(self.sinks, rows, slots, columns)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i become what row `beam_idx[i]` was, in window and memory."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, numbers or a boolean mask, in this order."""
        self._select(indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times in place."""
        self._select(torch.arange(self.rows.n_rows).repeat_interleave(repeats))

    def _select(self, index: Tensor) -> None:
        if self.rows.n_rows == 0:
            return
        rows = index.detach().cpu().numpy().astype(np.int64)
        self.memory.reorder(rows)
        self.rows.select(rows)
        self._angles.select(index)
        for layer in self.layers:
            layer.reorder_cache(index)  # type: ignore[arg-type]

    def crop(self, tokens_to_remove: int) -> None:
        """Take the newest `-tokens_to_remove` tokens back, those in memory too."""
        if tokens_to_remove > 0:
            raise ArgumentError(f"crop({tokens_to_remove}): expected 0 or minus the number of tokens to remove")
        # Some releases of transformers count in a tensor, which `+=` would then change wherever it was kept.
        n = min(-int(tokens_to_remove), self.rows.total)
        ends = self.rows.ends(self.rows.total - n) if n > self.rows.n else None
        if ends is not None and self._others_wrote(ends):
            raise Error(
                "the memory was written to beside this cache since tokens left its window, so these cannot be taken "
                "back in order: keep crop within the window, or reset()"
            )
        for layer in self.others:
            layer.crop(-n)
        if n == 0:
            return
        self.rows.crop(n)
        self._angles.cut(0, self.rows.n)
        if ends is not None:
            self._truncate(ends)
        for layer in self.attached.values():
            layer.shorten(self.rows.total, self.rows.n, self.rows.n_sinks)

    def reset(self) -> None:
        """Forget every token, and take back what this cache put into the memory; what others wrote stays."""
        first = self.rows.ends(0)
        if first is not None and self._others_wrote(first):
            # Positions and ids after those of this cache are taken, so they stay taken.
            for row in range(self.rows.n_rows):
                self.memory.delete(ids=self.rows.ids(row), rows=[row])
        elif first is not None:
            self._truncate(first)
            self.memory.next_position = self._continues
        super().reset()
        self.rows, self._angles = WindowRows(self.sinks), WindowAngles()
        self.shift, self._broken = None, False

    def _others_wrote(self, ends: Ints) -> bool:
        """Whether a row holds an entry at or beyond its end that this cache did not put there."""
        ours = [self.rows.ids(row) for row in range(self.rows.n_rows)]
        return any(
            not np.isin(found[found >= end], mine).all()
            for layer in self.memory.layers
            for found, end, mine in zip(
                self.memory[layer].find(where=("id", ">=", int(ends.min()))), ends, ours, strict=True
            )
        )

    def _truncate(self, ends: Ints) -> None:
        same = bool((ends == ends[0]).all())
        self.memory.truncate(int(ends[0]) if same else ends)

    def refuse_outside(self) -> NoReturn:
        """Raise: the tokens that left the window would be missing."""
        raise Error(
            "this cache works inside forward passes of the model it was made for, while the memory is attached: "
            f"{self._attachment.stack.name} is {'' if self._attachment.attached else 'not '}attached; "
            "use the DynamicCache of transformers elsewhere"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> WindowCache:
        if self.forward is not None:
            raise Error("a cache cannot be copied during a forward pass")
        twin = object.__new__(WindowCache)
        memo[id(self)] = twin
        memo[id(self._attachment)] = self._attachment
        memo[id(self.memory)] = self.memory.copy()
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin
