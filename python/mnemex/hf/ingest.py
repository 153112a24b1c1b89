"""Reading a text into a memory: chunk by chunk through the model, each chunk committed before the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnemex.errors import ArgumentError, DtypeError, ShapeError, StateError, Unsupported
from mnemex.hf.cache import WindowCache
from mnemex.torch import checks

if TYPE_CHECKING:
    from mnemex.hf.attachment import Attachment
    from mnemex.hf.window import Ints


def read_text(a: Attachment, ids: Tensor, attention_mask: Tensor | None, chunk: int) -> Ints:
    """Read token ids `[rows, T]`; the ids of their entries `[rows, T]`, -1 where a token was not written."""
    checks.tensor("ids", ids, "[rows, tokens]")
    if attention_mask is not None:
        checks.tensor("attention_mask", attention_mask, "[rows, tokens]")
    chunk = checks.count("chunk", chunk)
    if ids.dtype not in (torch.int64, torch.int32):
        raise DtypeError(f"ids are {ids.dtype}: expected the numbers of tokens, int64")
    if ids.ndim != 2 or (attention_mask is not None and attention_mask.shape != ids.shape):
        given = "" if attention_mask is None else f" and attention_mask {list(attention_mask.shape)}"
        raise ShapeError(f"ids are {list(ids.shape)}{given}: expected [rows, tokens] for both")
    if not ids.shape[0]:
        raise ShapeError(f"ids are {list(ids.shape)}: expected at least one row")
    stack = a.stack
    if stack.kind == "encoder-decoder" or stack.model.main_input_name != "input_ids":
        raise Unsupported(
            f"{stack.name} does not read token ids by themselves: attach with write='all', call it with its inputs, "
            "and commit()"
        )
    vocabulary = getattr(stack.model.get_input_embeddings(), "num_embeddings", None)
    if vocabulary is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ArgumentError(f"ids hold {int(ids.min())} to {int(ids.max())}: {stack.name} knows 0 to {vocabulary - 1}")
    if any(a.memory[layer].stats().staged_bytes for layer in a.memory.layers):
        raise StateError("tokens are staged, which reading a text would publish: commit() or rollback() first")
    encoder = stack.kind == "encoder"
    base = a.next_position
    if not encoder and (len(a.memory) or ids.shape[1] > chunk):
        a.need_positions()
    positions = base + torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    if attention_mask is not None:
        positions = base + (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    # Layers that are not attached need their own past from chunk to chunk; without such layers, no cache is needed.
    left_out = bool(stack.others) or len(a.modules) < len(stack.modules)
    cache = WindowCache(a, window=1, sinks=0) if left_out and not encoder else None
    if cache is not None and ids.shape[1] > chunk:
        a.recurrence.check(f"read the text in one chunk, ingest(ids, chunk={ids.shape[1]})")
    entries: list[Ints] = []
    with a.writing(cache):
        for start in range(0, ids.shape[1], chunk):
            span = slice(start, start + chunk)
            inputs: dict[str, Any] = {"input_ids": ids[:, span]}
            if attention_mask is not None:
                inputs["attention_mask"] = (
                    attention_mask[:, : span.stop] if cache is not None else attention_mask[:, span]
                )
            if not encoder:
                at = positions[:, span]
                # With plain keys what came before is at no position, and none needs to pass the trained length.
                inputs["position_ids"] = at - at.amin(1, keepdim=True) if a.rotary is not None and not left_out else at
                inputs.update(past_key_values=cache, use_cache=cache is not None)
            a.take_staged()
            stack.model(**inputs)
            staged = a.take_staged()
            entries.append(np.full(inputs["input_ids"].shape, -1) if staged is None else staged)
            a.memory.commit()
    return np.concatenate(entries, 1) if entries else np.zeros(tuple(ids.shape), np.int64)
