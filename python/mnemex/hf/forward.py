"""The state of one top-level forward pass of an attached model.

It travels to every attention layer as a keyword argument, and a recomputation under gradient checkpointing receives
the same object as the pass it repeats. So it pins the version of the memory that is read, and knows whether the pass
is still open: only then are tokens kept for staging, once per layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import StaticCache

from mnemex import Hits
from mnemex.errors import ArgumentError, Unsupported
from mnemex.hf import masks
from mnemex.hf.cache import WindowCache, self_attention_cache
from mnemex.hf.function import MERGE, Attended, Call
from mnemex.hf.staging import stage_tokens
from mnemex.parts import Shared
from mnemex.torch.joined import Reading, Trace, joined_attention
from mnemex.torch.local import Mask, Scoring
from mnemex.torch.retrieved import check_fits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mnemex import Memory
    from mnemex.hf.attachment import Attachment
    from mnemex.hf.rotary import Turn
    from mnemex.hf.window import Bools, Ints


class ModelForward:
    """One forward pass: what it reads, what it will stage, and what its masks and positions are.

    Parameters
    ----------
    attachment
        The attachment that opened it.
    owner
        The module whose forward pass it is.
    inputs
        The named arguments of that pass.
    """

    def __init__(self, attachment: Attachment, owner: nn.Module, inputs: Mapping[str, Any]) -> None:
        self.attachment, self.owner, self.open = attachment, owner, True
        self.layers = attachment.indices
        names = dict.fromkeys(["input_ids", "inputs_embeds", attachment.stack.model.main_input_name])
        given = next((inputs[name] for name in names if inputs.get(name) is not None), None)
        if given is None:
            raise ArgumentError(f"{attachment.stack.name} was called without {' and without '.join(names)}")
        self.batch = given.shape[0]
        # How many tokens a model makes of an image shows in its first attention layer.
        self.n_queries = given.shape[1] if given.ndim < 4 else 0
        past = self_attention_cache(inputs.get("past_key_values"))
        self.cache = past if isinstance(past, WindowCache) else None
        self.stages = attachment.stages_tokens and self.cache is None
        if self.stages and isinstance(past, StaticCache):
            raise Unsupported(
                "write='all' cannot tell new tokens from free room in a StaticCache: use the default cache, or none"
            )
        self._inputs = inputs
        self._n_past = 0 if past is None else past.get_seq_length()
        self.given: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: tuple[Tensor, Mask | None] | None = None
        self._local_masks: tuple[Tensor | None, Tensor | None] | None = None
        mask = inputs.get("attention_mask")
        self._mask_is_own = mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2)
        self._diagonal: Bools | None = None
        if self.cache is not None and self._mask_is_own:
            raise Unsupported(
                "a.cache() keeps part of the keys, to which a mask with one number per key does not fit: give the "
                "attention_mask of pads, [rows, tokens]"
            )
        if (self.stages or self.cache is not None) and self._packed():
            raise Unsupported(
                "position_ids start again within a row, so it holds several texts, and a row of a memory keeps one: "
                "write each text in a row of its own"
            )
        if self.cache is not None:
            self.cache.begin(self)
        elif self.stages:
            attachment.take_rows(attachment.memory, self.batch)
        if attachment.trace is not None:
            attachment.trace = {}
        memory = attachment.memory if self.cache is None else self.cache.memory
        self._snapshot = memory.snapshot()
        writes = self.cache is not None or self.stages
        self._wants_use = {i for i in self.layers.values() if memory[i].wants_use} if writes else set()
        self._used: dict[int, Trace] = {}

    @property
    def positions(self) -> Ints:
        """Position of each token, `[batch, T]`."""
        given = self._inputs.get("position_ids")
        shape = (self.batch, self.n_queries)
        if given is None:
            first = self._n_past + self.attachment.stack.first_position
            return np.broadcast_to(np.arange(first, first + self.n_queries), shape)
        # Models of images and text give [axes, batch, T]; text moves along all axes alike.
        plane = given if given.ndim == 2 else given[0]
        return np.broadcast_to(plane.detach().cpu().numpy(), shape)

    def _packed(self) -> bool:
        """Whether a row holds several texts: transformers keeps texts apart where positions do not go on by one."""
        given = self._inputs.get("position_ids")
        if given is None or given.ndim != 2 or self._inputs.get("attention_mask") is not None:
            return False
        return bool((given[:, 1:] != given[:, :-1] + 1).any())

    @property
    def last_position(self) -> int:
        """The largest position of the pass; -1 without tokens."""
        given = self._inputs.get("position_ids")
        if given is None:
            return self.attachment.stack.first_position + self._n_past + self.n_queries - 1
        return int(given.max()) if given.numel() else -1

    @property
    def valid(self) -> Bools | None:
        """Which tokens are no pads, `[batch, T]`; None where none is a pad."""
        given = self._inputs.get("attention_mask")
        if given is None:
            return None
        if self._mask_is_own:
            return self._diagonal
        valid: Bools = given[:, given.shape[1] - self.n_queries :].detach().cpu().numpy().astype(np.bool_)
        return None if valid.all() else valid

    def attend(self, index: int, call: Call) -> Attended:
        """Attend in one attached layer."""
        base, module, query, key, value, mask, kwargs = call
        if kwargs.get("cu_seq_lens_q") is not None:
            raise Unsupported(
                f"{type(module).__name__} got cu_seq_lens, which {base!r} attention does not see: give position_ids "
                "that start again with each text"
            )
        check_fits(f"layer {index}", self.attachment.memory[index], key, value)
        bias = kwargs.get("position_bias")
        if base == "sdpa" and mask is not None and mask.dtype != torch.bool and not self._mask_is_own:
            raise masks.biased(module)
        self.n_queries = self.n_queries or query.shape[2]
        if self.cache is not None:
            if bias is not None:
                raise Unsupported(
                    f"{type(module).__name__} biases keys by where they stand in the cache, which keeps part of them: "
                    "use it without a.cache()"
                )
            mask = self._of_local_keys(index, module, key, value, mask)
        elif self.stages and self.open:
            self._keep(index, module, key, value, mask)
        snapshot = self._snapshot[index]
        if snapshot.rows not in (1, query.shape[0]):
            raise self.attachment.other_rows(snapshot, query.shape[0])
        merge = getattr(module, MERGE, None)
        weight = None if merge is None else merge(query)
        if not len(snapshot):
            out, shown = call._replace(mask=mask).plain()
            # Distributed training wants every parameter in the graph, with nothing to learn in it too.
            return (
                out if weight is None or not torch.is_grad_enabled() else out + 0.0 * weight.sum().to(out.dtype),
                shown,
            )
        n_queries, n_keys = query.shape[2], key.shape[2]
        is_causal = kwargs.get("is_causal")
        causal = (
            mask is None and n_queries > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
        )
        if causal and base == "eager":
            raise Unsupported(
                f"{type(module).__name__} got no mask for {n_queries} queries, so it would see the future"
            )
        if causal and n_keys > n_queries:
            # A static cache that was empty: the rest of its room is masked by causality.
            key, value = key[:, :, :n_queries], value[:, :, :n_queries]
        home = query.dtype
        if torch.is_autocast_enabled(query.device.type):
            home = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(home), key.to(home), value.to(home)
        if bias is None:
            local_mask = self._prepared(module, mask, home)
        else:
            local_mask = masks.with_bias(bias, mask, key.shape[2], causal=causal, dtype=home)
            causal = False
        scale = kwargs.get("scaling")
        scoring = Scoring(
            query.shape[-1] ** -0.5 if scale is None else scale,
            kwargs.get("softcap"),
            causal,
            kwargs.get("dropout", 0.0) if module.training else 0.0,
        )
        out = joined_attention(
            query, key, value, local_mask, scoring,
            Reading(
                snapshot, self.attachment.top_k, self.attachment.merge, self._observer(index), self._view(index),
                self._lookup(index, module, key),
            ),
            weight=weight, sink=kwargs.get("s_aux"),
        )  # fmt: skip
        return out.transpose(1, 2).contiguous(), None

    def _view(self, index: int) -> Turn | None:
        """Say how the memory sees the queries of one layer."""
        rotary = self.attachment.rotary
        return None if rotary is None else rotary.turn_of(index, rotary.angles(index, self.given.get(index)))

    def _lookup(self, index: int, module: nn.Module, key: Tensor) -> Tensor | None:
        """Give the local keys as plain entries are looked up by them, where local tokens look entries up."""
        rotary = self.attachment.rotary
        if rotary is None or not isinstance(self.attachment.top_k, Shared):
            return None
        if key.shape[2] != self.n_queries:
            raise Unsupported(
                f"top_k={self.attachment.top_k!r} looks plain entries up by every local key, and "
                f"{type(module).__name__} has {key.shape[2] - self.n_queries} from earlier passes, whose positions are "
                "not known: read the text segment by segment with use_cache=False, or keep keys='rotated'"
            )
        return rotary.plain(index, key.detach(), rotary.angles(index, self.given.get(index)))

    def _observer(self, index: int) -> Callable[[Trace], None] | None:
        """Make what notes the retrieval of one layer, while this pass is open and someone asked for it."""
        notes = [self.attachment.trace] if self.attachment.trace is not None else []
        notes += [self._used] if index in self._wants_use else []
        if not notes or not self.open or self.attachment.top_k is None:
            return None

        def note(found: Trace) -> None:
            for each in notes:
                each[index] = found

        return note

    def tell_use(self, memory: Memory) -> bool:
        """Stage how much attention each retrieved entry got, where an evict policy goes by it; whether any did."""
        for index, found in self._used.items():
            mass = np.nan_to_num(found.mass * found.share[..., None], posinf=0.0)
            rows = np.zeros(len(mass), np.int64) if memory.rows == 1 else np.arange(len(mass))
            memory.touch(index, Hits(mass, found.ids, rows), mass)
        told, self._used = bool(self._used), {}
        return told

    def close(self, *, failed: bool) -> None:
        """End the pass: stage and, with a cache, commit; or forget all of it."""
        self.open = False
        kept, self._kept = self._kept, {}
        if self.cache is not None:
            if failed:
                self.cache.abort()
            else:
                self.cache.end(self)
        elif kept and not failed:
            positions, valid = self.positions, self.valid
            self.attachment.staged = stage_tokens(
                self.attachment.memory,
                kept,
                positions=positions,
                mask=valid,
                counts=self.attachment.counts,
            )
            self.tell_use(self.attachment.memory)
        self._inputs = {}
        self._masks = self._local_masks = None

    def _keep(self, index: int, module: nn.Module, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        if index in self._kept:
            raise Unsupported(
                f"{type(module).__name__} attends more than once in one forward pass, with other values each time: "
                f"leave layer {index} out with layers="
            )
        new = slice(key.shape[2] - self.n_queries, None)
        keys, rotary = key[:, :, new], self.attachment.rotary
        if rotary is not None:
            keys = rotary.plain(index, keys.detach(), rotary.angles(index, self.given.get(index)))
        self._kept[index] = (keys, value[:, :, new])
        self._note_diagonal(mask)

    def _note_diagonal(self, mask: Tensor | None) -> None:
        """With a mask made by the caller, a token that may not attend to itself is a pad."""
        if self._mask_is_own and self._diagonal is None and mask is not None:
            self._diagonal = np.broadcast_to(masks.diagonal(mask), (self.batch, self.n_queries))

    def _prepared(self, module: nn.Module, mask: Tensor | None, dtype: torch.dtype) -> Mask | None:
        """Make the mask that `joined_attention` takes. All layers share one mask, so it is made once."""
        if mask is None:
            return None
        if self._masks is not None and self._masks[0] is mask:
            return self._masks[1]
        prepared = masks.prepared(module, mask, dtype, own=self._mask_is_own)
        if self.open:
            self._masks = (mask, prepared)
        return prepared

    def _of_local_keys(
        self, index: int, module: nn.Module, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor | None:
        """Cut the mask to what the cache handed out: sinks, window and new keys."""
        cache = self.cache
        layer = None if cache is None or cache.forward is not self else cache.attached[index]
        if cache is None or layer is None or layer.keys is not key or layer.values is not value:
            raise Unsupported(
                f"{type(module).__name__} changes keys or values between its cache and its attention, or runs its "
                "attention again after the forward pass: use it without a.cache()"
            )
        if self._local_masks is not None and self._local_masks[0] is mask:
            return self._local_masks[1]
        local, unused = mask, cache.rows.sinks_valid()
        if mask is not None and cache.full_masks:
            n_sinks = cache.rows.n_sinks
            local = torch.cat(
                [mask[..., :1].expand(*mask.shape[:3], n_sinks), mask[..., mask.shape[3] - key.shape[2] + n_sinks :]], 3
            )
            unused = np.ones((self.batch, n_sinks), np.bool_) if unused is None else unused
        if unused is not None:
            local = masks.with_sinks(local, torch.from_numpy(unused).to(key.device), self.n_queries, key.shape[2])
        self._local_masks = (mask, local)
        return local
