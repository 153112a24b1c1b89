"""Keys and values of a model, staged in a type that the bank takes, and taken back where staging fails halfway.

A bank refuses types that would lose bits, so that nobody loses them unawares. An adapter cannot refuse: the same model
runs in float64, under autocast and without, and its memory is one. So what it stages is cast, as documented: float64 to
float32, the widest there is, and otherwise to what the bank took from its first write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnemex.errors import DtypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mnemex import Bank

Staged = list[tuple["Bank", "NDArray[np.int64]"]]
"""Banks, and the ids `[rows, T]` that were staged in them, in this order."""

NO_END = 1 << 62
"""An id above every id of a row."""

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def stage(bank: Bank, keys: Tensor, values: Tensor, **how: Any) -> NDArray[np.int64]:  # noqa: ANN401 - as `Bank.stage`
    """Stage `[rows, heads, T, dim]` keys and values, cast where the bank refuses their type; the ids `[rows, T]`."""
    try:
        return bank.stage(at_most_float32(keys), at_most_float32(values), **how)
    except DtypeError:
        return bank.stage(*as_taken(bank, keys, values), **how)


def as_taken(bank: Bank, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Cast keys and values to the types that the bank holds; before its first write, to float32 at most."""
    held = bank.stats()
    of_keys, of_values = (_DTYPES.get(codec or "") for codec in (held.key_codec, held.value_codec))
    return at_most_float32(keys).to(of_keys), at_most_float32(values).to(of_values)


def at_most_float32(x: Tensor) -> Tensor:
    """Cut the gradient, and round float64 to float32."""
    return x.detach().float() if x.dtype == torch.float64 else x.detach()


def take_back(staged: Staged) -> None:
    """Drop what was staged, the last first, and leave what others staged before."""
    while staged:
        bank, ids = staged.pop()
        bank.rollback(end=np.where(ids < 0, NO_END, ids).min(1, initial=NO_END))
