"""Published layers that are trained: recipes that return modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mnemex as mx

if TYPE_CHECKING:
    from mnemex.torch.neurocache import Neurocache
    from mnemex.torch.product_keys import ProductKeyMemory
    from mnemex.torch.product_values import ValueTable


def product_key(
    dim: int, *, n_keys: int = 512, heads: int = 4, k: int = 32, key_dim: int = 128, batch_norm: bool = True,
    values: ValueTable | int | None = None, track_usage: bool = False,
) -> ProductKeyMemory:  # fmt: skip
    """Make the memory layer of Lample et al., "Large Memory Layers with Product Keys" (2019).

    Published: n_keys, heads and k, the softmax over k slots, the sum over heads, and how parameters start. The authors'
    program has key_dim 256 without batch normalisation unless told otherwise, and their worked example, which they say
    made most of their results, key_dim 128 with it: the defaults here are those of the results.
    Outside: x + memory(x) in place of one feed-forward block in the middle of a transformer, and Adam for the
    values at a constant rate of 1e-3 (`mnemex.torch.split_values`).

    Parameters
    ----------
    dim
        Width of the model, and of the values.
    n_keys, heads, k, key_dim, batch_norm, values, track_usage
        As `mnemex.torch.ProductKeyMemory` takes them.
    """
    return mx.torch.ProductKeyMemory(
        dim, n_keys, heads=heads, k=k, key_dim=key_dim, batch_norm=batch_norm, values=values, track_usage=track_usage
    )


def memory_plus(
    dim: int, *, n_keys: int = 1024, heads: int = 4, k: int = 32, key_dim: int = 512,
    values: ValueTable | int | None = None, track_usage: bool = False,
) -> ProductKeyMemory:  # fmt: skip
    """Make one layer of Memory+, of Berges et al., "Memory Layers at Scale" (2024).

    Published: the numbers, the gate Wv (y * silu(Wg x)), no batch normalisation, how parameters start, and one table
    of values for all layers: give the first layer's `values` to the others, `memory_plus(dim, values=first.values)`.
    Own reading: Wv and Wg have no bias, the query has one, which starts at 0. Left out: the normalisation of queries
    and keys that the paper describes for small models, and tables divided among processors.
    Outside: x + memory(x) in place of the feed-forward block of three layers, spread evenly, and a constant learning
    rate of 1e-3 for the values, ten times the model's (`mnemex.torch.split_values`).

    Parameters
    ----------
    dim
        Width of the model, and of a table of its own.
    n_keys, heads, k, key_dim, values, track_usage
        As `mnemex.torch.ProductKeyMemory` takes them.
    """
    memory = mx.torch.ProductKeyMemory(
        dim, n_keys, heads=heads, k=k, key_dim=key_dim, values=values, gated=True, track_usage=track_usage
    )
    import torch

    torch.nn.init.xavier_uniform_(memory.query.weight)
    torch.nn.init.zeros_(memory.query.bias)
    for sub_keys in (memory.rows, memory.columns):
        torch.nn.init.uniform_(sub_keys, -(key_dim**-0.5), key_dim**-0.5)
    return memory


def neurocache(
    dim: int, *, heads: int, kv_heads: int | None = None, head_dim: int | None = None, layers: int = 1,
    capacity: int = 16_384, compression: int = 4, k: int = 16, context: int = 2, evict: str = "fifo", raw: bool = False,
) -> Neurocache:  # fmt: skip
    """Make the cache of Safaya and Yuret, "Neurocache" (2024, arXiv 2407.02486), of which a decoder has one.

    Published: the numbers, which are those of its training script; states in bfloat16 found by L2; the hit and its
    successor; the residual attention without gate or positions; reads before writes.
    Own reading: exact search where the program searches by stretches; a query reads what the tokens before it in its
    own segment found, and none of earlier segments; pads are not stored; training the compressor takes `raw=True`.
    Outside: where it stands. `mnemex.hf.attach_neurocache(model)` makes one to measure at three quarters of a stack;
    the published adapters train LoRA in the feed-forward blocks beside it.

    Parameters
    ----------
    dim, heads, kv_heads, head_dim, layers, capacity, compression, k, context, evict, raw
        As `mnemex.torch.Neurocache` takes them.
    """
    return mx.torch.Neurocache(
        dim, heads=heads, kv_heads=kv_heads, head_dim=head_dim, layers=layers, capacity=capacity,
        compression=compression, k=k, window=(0, 1), context=context, metric="l2", evict=evict, codec="bf16", raw=raw,
    )  # fmt: skip
