"""A memory from the cache of a forward pass that has run already, so that a long prompt is not read twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mnemex.capacity import of_layers
from mnemex.errors import ArgumentError, ShapeError, Unsupported
from mnemex.hf.cache import WindowCache, self_attention_cache
from mnemex.hf.staging import Counts, stage_tokens
from mnemex.torch import checks

if TYPE_CHECKING:
    from transformers import Cache

    from mnemex import Memory


def memory_from_cache(past_key_values: Cache, *, attention_mask: Tensor | None = None, **bank: Any) -> Memory:  # noqa: ANN401
    """Copy the keys and values of a transformers cache into a memory; see `mnemex.from_cache`."""
    from mnemex import Bank, Memory

    past = self_attention_cache(past_key_values)
    if isinstance(past, WindowCache):
        raise Unsupported("past_key_values is a WindowCache, the rest of which is in a memory already: use its memory")
    if not hasattr(past, "layers") or not hasattr(past, "get_seq_length"):
        raise ArgumentError(
            f"past_key_values is a {type(past).__name__}: expected a cache of transformers 5, e.g. DynamicCache"
        )
    given = sorted({"rows", "heads", "key_dim", "value_dim"} & bank.keys())
    if given:
        raise ArgumentError(f"{', '.join(given)}: the cache decides, leave it out")
    n = int(past.get_seq_length())
    layers: dict[int, tuple[Tensor, Tensor]] = {}
    for index, layer in enumerate(past.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, Tensor) or not isinstance(values, Tensor) or getattr(layer, "is_sliding", False):
            continue
        if keys.ndim == 4 and keys.shape[2] >= n:
            layers[index] = (keys[:, :, :n], values[:, :, :n])
    if n == 0 or not layers:
        raise ArgumentError("past_key_values holds no layer with all of its past: run the model with it first")
    rows = next(iter(layers.values()))[0].shape[0]
    positions = np.broadcast_to(np.arange(n), (rows, n))
    mask = None
    if attention_mask is not None:
        checks.tensor("attention_mask", attention_mask, "[rows, tokens]")
        if tuple(attention_mask.shape) != (rows, n):
            raise ShapeError(f"attention_mask is {list(attention_mask.shape)}: expected {[rows, n]}, as the cache")
        mask = attention_mask.cpu().numpy().astype(np.bool_)
        positions = (mask.cumsum(1) - 1).clip(0)
    room = of_layers(bank.pop("capacity", None), layers)
    memory = Memory(
        {
            index: Bank(
                rows=rows, heads=k.shape[1], key_dim=k.shape[3], value_dim=v.shape[3], capacity=room[index], **bank
            )
            for index, (k, v) in layers.items()
        }
    )
    stage_tokens(memory, layers, positions=positions, mask=mask, counts=Counts())
    memory.commit()
    return memory
