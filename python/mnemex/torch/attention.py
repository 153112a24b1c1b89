"""The public function: attention over local keys and a memory, for any PyTorch model.

It takes the shapes of `torch.nn.functional.scaled_dot_product_attention`, checks them once, and hands over to
`joined_attention`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from mnemex import Bank, Snapshot
from mnemex.errors import ArgumentError, DtypeError, ShapeError
from mnemex.torch import checks
from mnemex.torch.joined import Reading, joined_attention
from mnemex.torch.local import Scoring, prepare
from mnemex.torch.merges import GATED, JOINT, Merge, learned
from mnemex.torch.retrieved import check_rows

if TYPE_CHECKING:
    from mnemex.parts import Reader
    from mnemex.torch.merges import Bias, Gate


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    memory: Bank | Snapshot,
    top_k: int | Reader | None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    merge: Literal["joint"] | Bias | Gate = "joint",
) -> Tensor:
    """Attend to local keys and to the best entries of a memory, in one softmax.

    Parameters
    ----------
    q, k, v
        Queries `[B, Hq, Q, Dk]`, keys `[B, H, K, Dk]` and values `[B, H, K, Dv]`, of one dtype; query head h reads
        key/value head h // (Hq // H). Gradients reach all three.
    memory
        A bank, or a snapshot of one, with B rows or one row, whose heads divide Hq. Its entries get no gradient. The
        backward pass reads the version that the forward pass read.
    top_k
        Entries each query reads, or a reader (`mnemex.Window`); None: every entry.
    attn_mask
        For the local keys: boolean (True: attend) or additive, broadcastable to `[B, Hq, Q, K]`. A query that may
        attend to no local key reads the memory alone.
    is_causal
        Query i attends to local keys 0 to i. The memory is older than all of them. Not together with `attn_mask`.
    scale
        Factor of every score, local and retrieved; None: Dk ** -0.5.
    merge
        "joint" is exact: with every entry read it equals attention over memory and local keys in one piece. `Bias`
        and `Gate` are learned.

    Returns
    -------
    Tensor
        `[B, Hq, Q, Dv]` in the dtype of `q`. A query with NaN or infinity in it gives NaN, and no error.

    Raises
    ------
    ShapeError
        Shapes that do not fit each other or the memory.
    DtypeError
        Tensors of different dtypes, a mask of whole numbers, or an argument of another type.
    Unsupported
        A memory of another metric than "dot", or "cos", which chooses entries that dot products weigh.
    ArgumentError
        A mask together with `is_causal`, a merge of another kind, a `top_k` below 1.

    Examples
    --------
    >>> bank = mx.Bank(rows=2, heads=4, key_dim=64, value_dim=64)
    >>> out = mx.torch.attention(q, k, v, memory=bank, top_k=32, is_causal=True)
    >>> bank.write(k, v)
    """
    for name, x, shape in (("q", q, "[B, Hq, Q, Dk]"), ("k", k, "[B, H, K, Dk]"), ("v", v, "[B, H, K, Dv]")):
        checks.tensor(name, x, shape)
    if not isinstance(memory, (Bank, Snapshot)):
        raise DtypeError(f"memory is a {type(memory).__name__}: expected a Bank, of a Memory that of one layer")
    if torch.compiler.is_compiling():
        from mnemex.torch import compiled

        _check_shapes(q, k, v, compiled.sizes(memory))
    else:
        _check_shapes(q, k, v, (memory.key_dim, memory.value_dim, memory.heads))
        check_rows(memory, q.shape[0])
        top_k, is_causal = checks.top_k(top_k), checks.flag("is_causal", is_causal)
        scale = None if scale is None else checks.real("scale", scale)
    if attn_mask is not None and is_causal:
        raise ArgumentError("attn_mask and is_causal=True exclude each other: put the causal part into the mask")
    weight = None
    how: Merge = JOINT
    if isinstance(merge, nn.Module) and hasattr(merge, "merge"):
        # Not a `PerHead` alone: PEFT wraps what it trains.
        how, weight = merge.merge, merge(q)
    else:
        learned(merge)
    if torch.is_autocast_enabled(q.device.type):
        lower = torch.get_autocast_dtype(q.device.type)
        q, k, v = (x.to(lower) for x in (q, k, v))
    if attn_mask is not None:
        checks.tensor("attn_mask", attn_mask, "that spreads to [B, Hq, Q, K]")
    if attn_mask is not None and not (attn_mask.dtype == torch.bool or attn_mask.is_floating_point()):
        raise DtypeError(
            f"attn_mask is {attn_mask.dtype}: expected booleans (True: attend), e.g. attn_mask.bool(), or "
            "floating-point numbers that are added to the scores"
        )
    if attn_mask is not None and not _spreads(attn_mask, (*q.shape[:3], k.shape[2])):
        raise ShapeError(
            f"attn_mask is {list(attn_mask.shape)}: expected {[*q.shape[:3], k.shape[2]]} or a shape that spreads to it"
        )
    if torch.compiler.is_compiling():
        from mnemex.torch import compiled

        return compiled.attention(
            q, k, v, memory, top_k, attn_mask, is_causal=is_causal, scale=scale, weight=weight, gated=how is GATED
        )
    scoring = Scoring(q.shape[-1] ** -0.5 if scale is None else scale, causal=is_causal)
    return joined_attention(
        q, k, v, prepare(attn_mask, q.dtype), scoring, Reading(memory, top_k, how), weight=weight
    )  # fmt: skip


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, memory: tuple[int, int | None, int]) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ShapeError(f"{name} is {list(x.shape)}: expected 4 axes, [batch, heads, tokens, dim]")
        if not x.is_floating_point():
            raise DtypeError(f"{name} is {x.dtype}: expected a floating-point dtype, e.g. {name}.float()")
    if not q.dtype == k.dtype == v.dtype and not torch.is_autocast_enabled(q.device.type):
        raise DtypeError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: expected one dtype")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ShapeError(
            f"q, k, v are {list(q.shape)}, {list(k.shape)}, {list(v.shape)}: "
            "expected [B, Hq, Q, Dk], [B, H, K, Dk], [B, H, K, Dv]"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ShapeError(f"q has {q.shape[1]} heads, k has {k.shape[1]}: expected a multiple")
    key_dim, value_dim, heads = memory
    if key_dim != q.shape[-1] or value_dim != v.shape[-1]:
        raise ShapeError(
            f"memory has key_dim {key_dim} and value_dim {value_dim}, "
            f"k and v have {k.shape[-1]} and {v.shape[-1]}: expected the same"
        )
    if q.shape[1] % heads:
        raise ShapeError(f"q has {q.shape[1]} heads, memory has {heads}: expected a multiple")


def _spreads(mask: Tensor, shape: tuple[int, ...]) -> bool:
    if mask.ndim > len(shape):
        return False
    # Of one length: zip of two lengths stops torch.compile of PyTorch 2.9.
    last = shape[len(shape) - mask.ndim :]
    return all(m in (1, s) for m, s in zip(mask.shape, last, strict=True))
