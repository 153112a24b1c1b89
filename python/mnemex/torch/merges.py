"""How the two sides join: one softmax (`JOINT`), one softmax with a learned bias, or a learned gate.

Every merge weighs the memory side by a share per query: out = (1 - share) local + share memory. In one softmax the
share is sigmoid(memory lse + bias - local lse); a gate takes a learned number instead and leaves each side its own
softmax. A side without entries (lse = -inf) has no say in any of them.

A new merge is one more class with `join` and `split`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mnemex.errors import ArgumentError, ShapeError
from mnemex.torch.checks import count, real


class Joined(NamedTuple):
    """Output `[B, Hq, Q, Dv]` in float32 or wider, and the share of the memory `[B, Hq, Q]`."""

    out: Tensor
    share: Tensor


class Side(NamedTuple):
    """What the backward pass of one side needs: the gradient, output and log-sum-exp of the softmax it is part of."""

    grad: Tensor
    out: Tensor
    lse: Tensor


class Split(NamedTuple):
    """The backward pass taken apart; `weight` is the gradient of the learned number of each query head `[Hq]`."""

    local: Side
    memory: Side
    weight: Tensor | None


class Merge(Protocol):
    """Joins the sides, and takes a gradient apart again. `weight` is `[Hq]`, or None where nothing is learned."""

    def join(self, local: Side, memory: Side, weight: Tensor | None) -> Joined:
        """Join the sides; their `grad` is not looked at."""
        ...

    def split(self, local: Side, memory: Side, joined: Joined, weight: Tensor | None) -> Split:
        """Take the gradient apart; the `grad` of both sides is that of the joined output."""
        ...


def _per_head(weight: Tensor) -> Tensor:
    return weight.detach()[None, :, None]  # [1, Hq, 1]


def _mix(local: Tensor, memory: Tensor, share: Tensor) -> Tensor:
    wide = torch.promote_types(local.dtype, torch.float32)
    return torch.lerp(local.to(wide), memory.to(wide), share.to(wide)[..., None])


class OneSoftmax:
    """One softmax over local keys and entries, each memory logit raised by the weight of its head, if there is one."""

    def join(self, local: Side, memory: Side, weight: Tensor | None) -> Joined:
        """Join the sides."""
        far = memory.lse if weight is None else memory.lse + _per_head(weight)
        # -inf - -inf is NaN where neither side has an entry. A query with NaN keeps it: its outputs are NaN.
        share = torch.sigmoid(far - local.lse).nan_to_num_(0.0)
        return Joined(_mix(local.out, memory.out, share), share)

    def split(self, local: Side, memory: Side, joined: Joined, weight: Tensor | None) -> Split:
        """Take the gradient apart."""
        far = memory.lse if weight is None else memory.lse + _per_head(weight)
        lse = torch.logaddexp(local.lse, far)
        whole = Side(local.grad, joined.out, lse)
        if weight is None:
            return Split(whole, whole, None)
        of_weight = joined.share * (local.grad * (memory.out - joined.out)).sum(-1)
        return Split(whole, whole._replace(lse=lse - _per_head(weight)), of_weight.sum((0, 2)))


class Gated:
    """Two softmaxes, the memory's weighed by the sigmoid of a learned number per head."""

    def join(self, local: Side, memory: Side, weight: Tensor | None) -> Joined:
        """Join the sides."""
        if weight is None:
            raise ValueError("a gate needs its weight")
        share = torch.sigmoid(_per_head(weight).to(memory.lse.dtype)).expand_as(memory.lse)
        share = share.masked_fill(local.lse == -torch.inf, 1.0).masked_fill(memory.lse == -torch.inf, 0.0)
        return Joined(_mix(local.out, memory.out, share), share)

    def split(self, local: Side, memory: Side, joined: Joined, weight: Tensor | None) -> Split:  # noqa: ARG002 - the share tells
        """Take the gradient apart."""
        share = joined.share[..., None]
        slope = joined.share * (1.0 - joined.share)
        of_weight = (slope * (local.grad * (memory.out - local.out)).sum(-1)).sum((0, 2))
        return Split(
            local._replace(grad=local.grad * (1.0 - share)), memory._replace(grad=memory.grad * share), of_weight
        )


JOINT: Merge = OneSoftmax()
GATED: Merge = Gated()


class PerHead(nn.Module):
    """A merge with one learned number per query head, `weight` `[heads]`.

    Calling it gives the numbers. Adapters call it, and never read `weight`, so that a module which stands in for this
    one (PEFT's `modules_to_save` wraps a trainable copy) is obeyed.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    @property
    def merge(self) -> Merge:
        """How the sides join."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Show the number of heads."""
        return f"heads={self.weight.numel()}"

    def forward(self, query: Tensor) -> Tensor:
        """Give the number of each head, for queries `[B, heads, Q, Dk]`."""
        self.check_heads(query.shape[1], "the queries have")
        return self.weight

    def check_heads(self, heads: int, where: str) -> None:
        """Refuse another number of query heads than there are."""
        if heads != self.weight.numel():
            name = type(self).__name__
            raise ShapeError(
                f"merge has {self.weight.numel()} heads, {where} {heads}: make it with one per query head, "
                f"{name}({heads})"
            )


class Bias(PerHead):
    """A learned number per query head, added to every memory logit; 0, the start, is exact joint attention.

    Parameters
    ----------
    heads
        Number of query heads.
    """

    def __init__(self, heads: int) -> None:
        super().__init__(torch.zeros(count("heads", heads)))

    @property
    def merge(self) -> Merge:
        """How the sides join."""
        return JOINT


class Gate(PerHead):
    """A learned number per query head whose sigmoid is the share of the memory, over two separate softmaxes.

    Parameters
    ----------
    heads
        Number of query heads.
    init
        Where the numbers start; -2 gives the memory 12 %.

    Notes
    -----
    Memorizing Transformers (Wu et al., 2022), where the number is b_g.
    """

    def __init__(self, heads: int, *, init: float = -2.0) -> None:
        super().__init__(torch.full((count("heads", heads),), real("init", init)))

    @property
    def merge(self) -> Merge:
        """How the sides join."""
        return GATED


def learned(merge: object) -> PerHead | None:
    """Take "joint", which learns nothing, or a `Bias` or `Gate`."""
    if isinstance(merge, PerHead):
        return merge
    if isinstance(merge, str) and merge == "joint":
        return None
    raise ArgumentError(f"merge={merge!r}: expected 'joint', mnemex.torch.Bias(heads) or mnemex.torch.Gate(heads)")
