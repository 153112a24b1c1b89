"""Masks as transformers makes them, turned into what attention over local keys takes.

They come as None, boolean (True: attend), or additive with the smallest number of their dtype where a key is blocked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mnemex.errors import Unsupported
from mnemex.torch.local import Mask, prepare

if TYPE_CHECKING:
    from torch import nn

    from mnemex.hf.window import Bools


def prepared(module: nn.Module, mask: Tensor, dtype: torch.dtype, *, own: bool) -> Mask | None:
    """Make the mask that `joined_attention` takes; numbers that do not block are refused unless the mask is `own`."""
    additive = mask
    if mask.dtype != torch.bool:
        blocked = mask <= torch.finfo(mask.dtype).min
        if not own and bool((mask.masked_fill(blocked, 0.0) != 0.0).any()):
            raise biased(module)
        additive = mask.masked_fill(blocked, -torch.inf)
    return prepare(additive, dtype)


def with_bias(bias: Tensor, mask: Tensor | None, n_keys: int, *, causal: bool, dtype: torch.dtype) -> Mask | None:
    """Add the bias that a model learned for each distance between tokens (T5) to the mask, with its gradient.

    Entries of the memory get no such bias: they are other texts, or at no distance the model could name.
    """
    bias = bias[..., :n_keys]
    if mask is None and causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        bias = bias.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        bias = (bias + mask).masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)
    return prepare(bias, dtype)


def biased(module: nn.Module) -> Unsupported:
    """Make the error for a bias that belongs to single keys."""
    return Unsupported(
        f"{type(module).__name__} adds a bias of its own to each key, which entries of a memory do not have: "
        "detach the memory from this model"
    )


def diagonal(mask: Tensor) -> Bools:
    """Tell which new tokens may attend to themselves, `[batch or 1, T]`; the others are pads."""
    own = mask[:, 0].diagonal(mask.shape[3] - mask.shape[2], -2, -1)
    seen: Bools = (own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min).cpu().numpy()
    return seen


def with_sinks(mask: Tensor | None, valid: Tensor, n_queries: int, n_keys: int) -> Tensor:
    """Open the first columns of the mask, the sinks, where a row has that sink; `valid` is `[rows, n_sinks]`."""
    rows, n_sinks = valid.shape
    if mask is None:
        mask = torch.ones(rows, 1, n_queries, n_keys, dtype=torch.bool, device=valid.device)
    else:
        mask = mask.expand(rows, *mask.shape[1:]).clone()
    blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    opened = True if mask.dtype == torch.bool else 0.0
    mask[..., :n_sinks] = opened
    unused = torch.nn.functional.pad(~valid, (0, n_keys - n_sinks))
    return mask.masked_fill_(unused[:, None, None], blocked)
