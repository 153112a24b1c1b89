"""Published systems by name: one short function each, which puts parts together with the published numbers.

A recipe holds no code of its own. It says where its numbers are from, what is this project's own reading, and what it
leaves to the model around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mnemex as mx

if TYPE_CHECKING:
    from mnemex.torch.product_keys import ProductKeyMemory
    from mnemex.torch.product_values import ValueTable

__all__ = ["memory_plus", "product_key"]


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
