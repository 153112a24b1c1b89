"""The model goes on with the file: with every entry of the memory read, greedy tokens are those of full attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import Cache, PreTrainedModel


def go_on(
    model: PreTrainedModel, prompt: NDArray[np.int64], *, cache: Cache, n_tokens: int, chunk: int
) -> NDArray[np.int64]:
    """Let a model continue a prompt greedily, through a cache.

    Parameters
    ----------
    model, prompt, cache
        A causal language model, tokens `[n]`, and an empty cache.
    n_tokens
        Tokens to write; all of them are written, whatever the model says about an end.
    chunk
        Tokens of the prompt per forward pass.

    Returns
    -------
    Tokens written, `[n_tokens]`.
    """
    tokens = torch.from_numpy(prompt)[None]
    written = model.generate(  # type: ignore[operator]  # typed as a tensor through nn.Module
        tokens,
        attention_mask=torch.ones_like(tokens),
        past_key_values=cache,
        prefill_chunk_size=chunk,
        do_sample=False,
        min_new_tokens=n_tokens,
        max_new_tokens=n_tokens,
    )
    return written[0, len(prompt) :].numpy()


def n_equal(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return how many tokens agree before the first that does not."""
    differs = np.flatnonzero(a != b)
    return int(differs[0]) if len(differs) else len(a)
