"""Product-key lookup and the sum of values as operators, which torch.compile keeps whole.

On the CPU the native kernels do the work, for float32 and the half precisions; everywhere else plain torch does
(`product_plain`). Gradients of a value table are sparse: the rows that were read, and nothing of the size of the table.

A compiled graph cannot hold a sparse tensor safely: PyTorch 2.13 fails to add two of them, which two layers that share
a table would need, and its Inductor fails to look at one again that it has rewritten something before. So a compiled
graph carries a number that stands for the gradient, the *port* of a table, made once and outside of any graph. In the
backward pass an operator puts rows aside under that port and gives the port the gradient zero; behind the graph, the
port's own backward step takes what this pass put aside and hands it to the table as one sparse gradient. So
accumulation, hooks, checkpointing and `torch.autograd.grad` are autograd's own in both modes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mnemex import _product
from mnemex.errors import Unsupported
from mnemex.torch import product_plain
from mnemex.torch.product_plain import Found

_HALVES = (torch.float16, torch.bfloat16)
_NATIVE = (torch.float32, *_HALVES)


def lookup(rows: Tensor, columns: Tensor, queries: Tensor, k: int) -> Found:
    """Find the k best pairs; takes and gives what `product_plain.lookup` does. On the CPU the answer is exact.

    Exact: every score is summed in float64 in one order and rounded once, and the k taken are the first of all n1 * n2.
    """
    if not _is_native(queries):
        return product_plain.lookup(rows, columns, queries, k)
    return Found(*_lookup(*(x.float().contiguous() for x in (rows, columns, queries)), k))


def bag(values: Tensor, ids: Tensor, weights: Tensor, port: Tensor | None = None) -> Tensor:
    """Sum rows of `values` `[n, dv]` by weight: `[T, dv]` of ids and weights `[T, m]`; id -1 adds nothing.

    Gives the dtype of the weights: float32, for values in float64 float64. The gradient of `values` is sparse; with
    its `port` it takes the way through that.
    """
    if port is not None:
        values = values.detach()
    return _bag(values.contiguous(), ids.contiguous(), weights.contiguous(), port)


def _is_native(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _NATIVE


def refuse_second_derivatives() -> None:
    """Raise where a backward pass is to be differentiated in turn: terms would be missing, and nobody would say so."""
    if torch.is_grad_enabled():
        raise Unsupported("product-key memory has no second derivatives: differentiate without create_graph=True")


@torch.library.custom_op("mnemex::product_lookup", mutates_args=())
def _lookup(rows: Tensor, columns: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores, ids = _product.lookup(rows.detach().numpy(), columns.detach().numpy(), queries.detach().numpy(), k)
    return torch.from_numpy(scores), torch.from_numpy(ids)


@_lookup.register_fake
def _(rows: Tensor, columns: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    shape = (*queries.shape[:2], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("mnemex::product_lookup_backward", mutates_args=())
def _lookup_backward(
    rows: Tensor, columns: Tensor, queries: Tensor, ids: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    arrays = (x.detach().contiguous().numpy() for x in (rows, columns, queries, ids, grad))
    found = _product.lookup_backward(*arrays)
    return torch.from_numpy(found.rows), torch.from_numpy(found.columns), torch.from_numpy(found.queries)


@_lookup_backward.register_fake
def _(
    rows: Tensor, columns: Tensor, queries: Tensor, ids: Tensor, grad: Tensor  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(rows), torch.empty_like(columns), torch.empty_like(queries)


def _keep_lookup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_lookup(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    refuse_second_derivatives()
    rows, columns, queries, ids = ctx.saved_tensors
    return *_lookup_backward(rows, columns, queries, ids, grad), None


_lookup.register_autograd(_differentiate_lookup, setup_context=_keep_lookup)


@torch.library.custom_op("mnemex::product_bag", mutates_args=())
def _bag(values: Tensor, ids: Tensor, weights: Tensor, port: Tensor | None) -> Tensor:  # noqa: ARG001 - for its gradient
    if _is_native(values) and weights.dtype == torch.float32:
        return torch.from_numpy(_product.bag(values.detach(), ids.numpy(), weights.detach().numpy()))
    return product_plain.bag(values, ids, weights)


@_bag.register_fake
def _(values: Tensor, ids: Tensor, weights: Tensor, port: Tensor | None) -> Tensor:  # noqa: ARG001
    return weights.new_empty(weights.shape[0], values.shape[1])


@torch.library.custom_op("mnemex::product_bag_backward", mutates_args=())
def _bag_backward(values: Tensor, ids: Tensor, weights: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if _is_native(values) and weights.dtype == torch.float32:
        arrays = (x.detach().contiguous().numpy() for x in (ids, weights, grad))
        found = _product.bag_backward(values.detach(), *arrays)
        of_weights, touched, of_values = map(torch.from_numpy, found)
    else:
        of_weights, touched, of_values = product_plain.bag_backward(values, ids, weights, grad)
    return of_weights, touched, of_values.to(values.dtype)


@_bag_backward.register_fake
def _(values: Tensor, ids: Tensor, weights: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    touched = torch.library.get_ctx().new_dynamic_size()
    return torch.empty_like(weights), ids.new_empty(touched), values.new_empty(touched, values.shape[1])


def _keep_bag(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401, ARG001
    ctx.save_for_backward(*inputs)


def _differentiate_bag(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    refuse_second_derivatives()
    values, ids, weights, port = ctx.saved_tensors
    of_weights, touched, of_values = _bag_backward(values, ids, weights, grad)
    if port is not None:
        return None, None, of_weights, _put_aside(port, touched, of_values)
    return (_sparse(values.shape, touched, of_values) if ctx.needs_input_grad[0] else None), None, of_weights, None


def _sparse(shape: torch.Size, touched: Tensor, of_values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(touched[None], of_values, shape, check_invariants=False, is_coalesced=True)


_bag.register_autograd(_differentiate_bag, setup_context=_keep_bag)

# Rows of a gradient by port (its address) and backward pass, each entry until that pass ends.
_aside: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}


@torch.library.custom_op("mnemex::product_put_aside", mutates_args=())
def _put_aside(port: Tensor, touched: Tensor, of_values: Tensor) -> Tensor:
    """Keep rows of a gradient until the port asks for them, or this backward pass ends."""
    key = (port.data_ptr(), torch._C._current_graph_task_id())
    if key not in _aside:
        _aside[key] = []

        def forget() -> None:
            del _aside[key]

        torch.autograd.Variable._execution_engine.queue_callback(forget)
    # Copies: the graph may write over what it is given.
    _aside[key].append((touched.clone(), of_values.clone()))
    return torch.zeros_like(port)


@_put_aside.register_fake
def _(port: Tensor, touched: Tensor, of_values: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(port)


class _Port(torch.autograd.Function):
    """One number that stands for a table; its backward step gives the table what was put aside under its address."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401 - torch names no type
        port = torch.zeros(1, device="cpu")  # whatever device is the default: addresses are of one
        ctx.address, ctx.shape = port.data_ptr(), values.shape
        return port

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:  # noqa: ANN401, ARG004
        parts = _aside.get((ctx.address, torch._C._current_graph_task_id()), [])
        whole = None
        for touched, of_values in parts:
            part = _sparse(ctx.shape, touched, of_values)
            whole = part if whole is None else whole + part
        return whole


def make_port(values: torch.nn.Parameter) -> Tensor:
    """Make the port of a table, outside of any compiled graph. It holds while the table is this very parameter."""
    learned = values.requires_grad
    with torch.enable_grad():
        port: Tensor = _Port.apply(values.requires_grad_())
    values.requires_grad_(learned)
    return port
