"""Attention as one operator that torch.compile keeps whole: no graph break, and one graph while the bank grows.

A compiled graph holds numbers and tensors alone. So it knows the memory by its `id`, on which the graph is guarded, and
what a backward pass needs of its forward pass hangs on a tensor that goes through the graph between them, the ticket:
its buffer belongs to a numpy array that owns those things, and dies with the last tensor that shares it.

Importing this imports the compiler, which takes seconds, so it is imported where something is compiled.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from mnemex.errors import Error, Unsupported
from mnemex.pages import Blocks
from mnemex.parts import Shared, Threshold, TopK, Window
from mnemex.torch.joined import Pass, Reading, backward_pass, forward_pass, joined_attention, refuse_second_derivatives
from mnemex.torch.local import Mask, Scoring, prepare
from mnemex.torch.merges import GATED, JOINT
from mnemex.torch.retrieved import check_rows

if TYPE_CHECKING:
    from mnemex import Bank, Snapshot
    from mnemex.parts import Reader

_memories: WeakValueDictionary[int, Any] = WeakValueDictionary()
_tickets: WeakValueDictionary[int, _Ticket] = WeakValueDictionary()


class _Ticket(np.ndarray[Any, Any]):
    """A buffer, found by its address, and what a backward pass will need."""

    kept: Pass


def sizes(memory: Bank | Snapshot) -> tuple[int, int | None, int]:
    """Give key_dim, value_dim and heads, which never change, and let graphs know the memory by its id."""
    return _registered(id(memory))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _registered(memory: int) -> tuple[int, int | None, int]:
    """Run while a graph is made. PyTorch 2.9 hands numbers alone to such a function: the caller holds the object."""
    found: Bank | Snapshot = ctypes.cast(memory, ctypes.py_object).value
    _memories[memory] = found
    return found.key_dim, found.value_dim, found.heads


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Bank | Snapshot,
    k: int | Reader | None,
    mask: Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
    weight: Tensor | None,
    gated: bool,
) -> Tensor:
    """Attend as one operator; the arguments are those of `mnemex.torch.attention`, checked."""
    given = (query, key, value, mask, weight)
    n, least, before, after, pages = _numbers(k)
    out, _ = _attend(
        query, key, value, mask, weight, id(memory), n, least, before, after, pages,
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        is_causal, gated, torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given),
        torch.is_grad_enabled() and mask is not None and mask.requires_grad,
    )  # fmt: skip
    return out


def _numbers(k: int | Reader | None) -> tuple[int | None, float | None, int, int, int]:
    """Say what is read in numbers, which is what an operator takes."""
    if isinstance(k, Shared):
        raise Unsupported(f"top_k={k!r}: no graph holds pairs that local tokens look up: do not compile it")
    if isinstance(k, Window):
        return k.k, None, k.before, k.after, 0
    if isinstance(k, Blocks):
        return k.n, None, k.contiguous, k.contiguous, 2 if k.shared else 1
    if isinstance(k, Threshold):
        return k.k, k.score, 0, 0, 0
    return k.k if isinstance(k, TopK) else k, None, 0, 0, 0


def _reader(k: int | None, least: float | None, before: int, after: int, pages: int) -> int | Reader | None:
    """Undo `_numbers`."""
    if k is not None and pages:
        return Blocks(k, before, shared=pages > 1)
    if k is None or (least is None and not before and not after):
        return k
    return Window(k, before, after) if least is None else Threshold(least, k)


def _prepared(mask: Tensor | None, dtype: torch.dtype, *, of_mask: bool) -> Mask | None:
    """Prepare the mask; inside an operator no tensor requires a gradient, so one that is learned is marked again."""
    prepared = prepare(mask, dtype)
    return prepared and prepared._replace(additive=prepared.additive.detach().requires_grad_(of_mask))


# What the operators answer depends on the bank, which a replayed CUDA graph would not look at again.
_TAGS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("mnemex::attention", mutates_args=(), tags=_TAGS)
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    memory: int,
    k: int | None,
    least: float | None,
    before: int,
    after: int,
    pages: int,
    scale: float,
    causal: bool,  # noqa: FBT001 - operators take what a schema can say
    gated: bool,  # noqa: FBT001
    gradients: bool,  # noqa: FBT001
    of_mask: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor]:
    found = _memories.get(memory)
    if found is None:
        raise Error("the memory this function was compiled with is gone: keep a reference to it")
    check_rows(found, query.shape[0])
    scoring = Scoring(scale, causal=causal)
    reading = Reading(found, _reader(k, least, before, after, pages), GATED if gated else JOINT)
    local_mask = _prepared(mask, query.dtype, of_mask=of_mask)
    if not gradients:
        out = joined_attention(query, key, value, local_mask, scoring, reading, weight=weight)
        return out.contiguous(), torch.zeros(1, dtype=torch.uint8)
    kept = forward_pass(query, key, value, local_mask, scoring, reading, weight=weight, sink=None)
    ticket = np.zeros(1, np.uint8).view(_Ticket)
    ticket.kept = kept
    _tickets[ticket.ctypes.data] = ticket
    # A copy: the graph may write over what it is given.
    return kept.joined.out.to(query.dtype, copy=True).contiguous(), torch.from_numpy(ticket)


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return query.new_empty(*query.shape[:3], value.shape[-1]), torch.empty(1, dtype=torch.uint8)


@torch.library.custom_op("mnemex::attention_backward", mutates_args=(), tags=_TAGS)
def _attend_backward(
    grad: Tensor,
    ticket: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    of_mask: bool,  # noqa: FBT001
) -> list[Tensor]:
    held = _tickets.get(ticket.data_ptr())
    if held is None:
        raise Error("the forward pass of this backward pass is gone: run mnemex.torch.attention outside torch.compile")
    found = backward_pass(
        held.kept,
        grad,
        query,
        key,
        value,
        _prepared(mask, query.dtype, of_mask=of_mask),
        weight=weight,
        sink=None,
        of_mask=of_mask,
    )
    gradients = [found.query, found.key, found.value]
    if of_mask and mask is not None:
        gradients.append(torch.zeros_like(mask) if found.additive is None else found.additive.reshape(mask.shape))
    if weight is not None and found.weight is not None:
        gradients.append(found.weight)
    return [x.contiguous() for x in gradients]


@_attend_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    ticket: Tensor,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    of_mask: bool,  # noqa: FBT001
) -> list[Tensor]:
    wanted = [
        query,
        key,
        value,
        *([mask] if of_mask and mask is not None else []),
        *([] if weight is None else [weight]),
    ]
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in wanted]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs[:5], output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    refuse_second_derivatives()
    query, key, value, mask, weight, ticket = ctx.saved_tensors
    of_mask = ctx.needs_input_grad[3]
    first, second, third, *rest = _attend_backward(grad, ticket, query, key, value, mask, weight, of_mask)
    of_mask_ = rest.pop(0) if of_mask else None
    return first, second, third, of_mask_, rest.pop(0) if rest else None, *(None,) * 11


_attend.register_autograd(_differentiate, setup_context=_keep)
