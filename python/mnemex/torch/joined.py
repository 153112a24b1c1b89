"""Local attention and memory joined: the one operation behind every PyTorch adapter.

Without gradients it is a plain function. With them it is one autograd node that keeps the version of the memory its
forward pass read, so that a commit between forward and backward changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mnemex import Bank
from mnemex.errors import Unsupported
from mnemex.parts import Shared
from mnemex.torch import local as local_side
from mnemex.torch import retrieved, shared
from mnemex.torch.local import Local, Mask, Scoring
from mnemex.torch.merges import JOINT, Joined, Merge, Side

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from mnemex import Hits, Snapshot
    from mnemex.parts import Reader


class Trace(NamedTuple):
    """What one call retrieved.

    Attributes
    ----------
    ids
        Entries, int64 `[B, Hq, Q, k]`; -1 where there were fewer. With a `mnemex.Window`, in the places of its answer.
    mass
        Their weights among each other, float32, of the same shape; an entry in several places has its in the first.
    share
        Share of the memory in the whole softmax, float32 `[B, Hq, Q]`.
    """

    ids: NDArray[np.int64]
    mass: NDArray[np.float32]
    share: NDArray[np.float32]


class View(Protocol):
    """A linear map of queries `[B, Hq, Q, Dk]`, through which the memory sees them."""

    def seen(self, query: Tensor) -> Tensor:
        """Map queries."""
        ...

    def gradient(self, grad: Tensor) -> Tensor:
        """Map the gradient of mapped queries back: the transpose."""
        ...


class Reading(NamedTuple):
    """What is read and how it joins. With `k` None, every entry is; otherwise `observe` is told which ones were.

    `view` is how the memory sees the queries; None: as they are. `lookup` is how it sees the local keys
    `[B, Hkv, K, Dk]`, where `k` is `mnemex.Shared`; None: as they are.
    """

    memory: Bank | Snapshot
    k: int | Reader | None
    merge: Merge = JOINT
    observe: Callable[[Trace], None] | None = None
    view: View | None = None
    lookup: Tensor | None = None

    def seen(self, query: Tensor) -> Tensor:
        """Give the queries as the memory sees them."""
        return query if self.view is None else self.view.seen(query.detach())


def joined_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None,
    scoring: Scoring,
    reading: Reading,
    *,
    weight: Tensor | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """Attend to the local keys and to the memory.

    Parameters
    ----------
    query, key, value
        `[B, Hq, Q, Dk]`, `[B, Hkv, K, Dk]`, `[B, Hkv, K, Dv]`, of one dtype.
    mask, scoring
        For the local keys; scale and soft-cap hold for the memory too.
    reading
        What is read.
    weight
        The learned number of each query head `[Hq]`, if the merge has one.
    sink
        One more logit per query head `[Hq]`, without a value; it counts once.

    Returns
    -------
    Tensor
        `[B, Hq, Q, Dv]` in the dtype of the query.
    """
    if torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (query, key, value, weight, sink, mask.additive if mask else None)
    ):
        additive, dead = mask if mask is not None else (None, None)
        return _JoinedAttention.apply(query, key, value, additive, weight, sink, dead, scoring, reading)
    local = local_side.attend(query, key, value, mask, scoring)
    if sink is not None:
        local = _with_sink(local, sink)
    far, _ = _read(reading.memory, reading, query, key, mask, scoring, hits=reading.observe is not None)
    return _join(local, far, weight, reading).out.to(query.dtype)


def _read(
    memory: Bank | Snapshot, reading: Reading, query: Tensor, key: Tensor, mask: Mask | None, scoring: Scoring, *,
    hits: bool,
) -> tuple[retrieved.Retrieved, shared.Pairs | None]:  # fmt: skip
    """Read the memory; the pairs that were prepended, where there are such."""
    seen = reading.seen(query)
    if not isinstance(reading.k, Shared):
        return retrieved.attend(memory, seen, reading.k, scoring, hits=hits), None
    by = key if reading.lookup is None else reading.lookup
    pairs = shared.look_up(memory, by, reading.k, query, mask, causal=scoring.causal)
    far = local_side.attend(seen, pairs.keys, pairs.values, pairs.mask, pairs.scoring(scoring))
    return retrieved.Retrieved(far.out, far.lse), pairs


def _join(local: Local, far: retrieved.Retrieved, weight: Tensor | None, reading: Reading) -> Joined:
    joined = reading.merge.join(Side(local.out, local.out, local.lse), Side(far.out, far.out, far.lse), weight)
    if reading.observe is not None and far.hits is not None and far.mass is not None:
        reading.observe(Trace(far.hits.ids, far.mass, joined.share.detach().float().cpu().numpy()))
    return joined


def _with_sink(local: Local, sink: Tensor) -> Local:
    """Let the sink take its part of the local softmax."""
    lse = torch.logaddexp(local.lse, sink.detach().to(local.lse.dtype)[None, :, None])
    share = (local.lse - lse).exp()[..., None]
    return local._replace(out=local.out.to(lse.dtype) * share, lse=lse)


class Pass(NamedTuple):
    """What a backward pass needs of its forward pass, besides the inputs; the memory in `reading` is frozen."""

    reading: Reading
    hits: Hits | None
    local: Local
    far: retrieved.Retrieved
    joined: Joined
    scoring: Scoring
    pairs: shared.Pairs | None = None


class Gradients(NamedTuple):
    """Gradients of the inputs; None where there is no such input, or no gradient was asked for."""

    query: Tensor
    key: Tensor
    value: Tensor
    additive: Tensor | None
    weight: Tensor | None
    sink: Tensor | None


def forward_pass(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None,
    scoring: Scoring,
    reading: Reading,
    *,
    weight: Tensor | None,
    sink: Tensor | None,
) -> Pass:
    """Attend, and keep what `backward_pass` needs. Takes what `joined_attention` takes."""
    snapshot = reading.memory.snapshot() if isinstance(reading.memory, Bank) else reading.memory
    local = local_side.attend(query, key, value, mask, scoring)
    if sink is not None:
        local = _with_sink(local, sink)
    far, pairs = _read(snapshot, reading, query, key, mask, scoring, hits=reading.k is not None)
    joined = _join(local, far, weight, reading)
    return Pass(reading._replace(memory=snapshot), far.hits, local, far, joined, scoring, pairs)


def backward_pass(
    kept: Pass,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None,
    *,
    weight: Tensor | None,
    sink: Tensor | None,
    of_mask: bool,
) -> Gradients:
    """Give the gradients of the inputs of `forward_pass`; that of the mask only where asked for."""
    out, far, scoring = kept.joined.out, kept.far, kept.scoring
    wide = grad.to(out.dtype)
    split = kept.reading.merge.split(
        Side(wide, kept.local.out, kept.local.lse), Side(wide, far.out, far.lse), kept.joined, weight
    )
    near = split.local
    of_local = local_side.backward(
        near.grad.to(query.dtype), query, key, value, mask, scoring,
        out=near.out.to(query.dtype), lse=near.lse, kept=kept.local.kept,
    )  # fmt: skip
    memory = split.memory
    seen, pairs = kept.reading.seen(query), kept.pairs
    if pairs is None:
        of_far = retrieved.query_gradient(
            kept.reading.memory, kept.hits, seen, scoring,
            grad=memory.grad, delta=(memory.grad * memory.out).sum(-1), lse=memory.lse,
        )  # fmt: skip
    else:
        of_far = local_side.backward(
            memory.grad.to(query.dtype), seen, pairs.keys, pairs.values, pairs.mask, pairs.scoring(scoring),
            out=memory.out.to(query.dtype), lse=memory.lse, kept=None,
        ).query  # fmt: skip
    view = kept.reading.view
    of_query = of_local.query + (of_far if view is None else view.gradient(of_far))
    of_additive = None
    if of_mask and mask is not None and of_local.scores is not None:
        of_additive = of_local.scores.sum_to_size(mask.additive.shape).to(mask.additive.dtype)
    of_sink = None
    if sink is not None:
        delta = (near.grad * near.out).sum(-1)
        of_sink = -((sink[None, :, None] - near.lse).exp() * delta).sum((0, 2)).to(sink.dtype)
    of_weight = None if split.weight is None or weight is None else split.weight.to(weight.dtype)
    return Gradients(of_query, of_local.key, of_local.value, of_additive, of_weight, of_sink)


def refuse_second_derivatives() -> None:
    """Raise where a backward pass is to be differentiated in turn: terms would be missing, and nobody would say so."""
    if torch.is_grad_enabled():
        raise Unsupported("attention with a memory has no second derivatives: differentiate without create_graph=True")


class _JoinedAttention(torch.autograd.Function):
    """The differentiable form. Nothing here is differentiable twice."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch names no type
        query: Tensor,
        key: Tensor,
        value: Tensor,
        additive: Tensor | None,
        weight: Tensor | None,
        sink: Tensor | None,
        dead: Tensor | None,
        scoring: Scoring,
        reading: Reading,
    ) -> Tensor:
        mask = None if additive is None else Mask(additive, dead)
        kept = forward_pass(query, key, value, mask, scoring, reading, weight=weight, sink=sink)
        local, far, joined = kept.local, kept.far, kept.joined
        # Tensors go through autograd, which frees them, and reports those that were changed in place.
        ctx.save_for_backward(
            query, key, value, additive, weight, sink, dead,
            local.out, local.lse, local.kept, far.out, far.lse, joined.out, joined.share,
        )  # fmt: skip
        ctx.reading, ctx.hits, ctx.scoring, ctx.pairs = kept.reading, kept.hits, scoring, kept.pairs
        return joined.out.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch names no type
        refuse_second_derivatives()
        query, key, value, additive, weight, sink, dead, *made = ctx.saved_tensors
        kept = Pass(
            ctx.reading, ctx.hits, Local(*made[:3]), retrieved.Retrieved(*made[3:5]), Joined(*made[5:]), ctx.scoring,
            ctx.pairs,
        )  # fmt: skip
        gradients = backward_pass(
            kept, grad, query, key, value, None if additive is None else Mask(additive, dead),
            weight=weight, sink=sink, of_mask=ctx.needs_input_grad[3],
        )  # fmt: skip
        return (*gradients, None, None, None)
