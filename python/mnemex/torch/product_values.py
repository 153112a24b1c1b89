"""The value table of product-key memories: many rows, of which a step reads few, and which several layers may share.

Its gradient is sparse, so it takes an optimiser of its own: `split_values` sorts a model's parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mnemex.errors import DtypeError, ShapeError
from mnemex.torch import product_ops
from mnemex.torch.checks import count, tensor


class ValueTable(nn.Module):
    """Values that product-key memories read, `weight` `[n_values, value_dim]`, with sparse gradients.

    Give one table to several `ProductKeyMemory` layers and they share it; their gradients add up.

    Parameters
    ----------
    n_values
        Rows. A slot reads row slot % n_values, so a table smaller than the slots of a layer is shared among them.
    value_dim
        Numbers per row. They start normal, with standard deviation value_dim ** -0.5.

    Examples
    --------
    >>> table = mx.torch.ValueTable(512**2, 256)
    >>> first, second = (mx.torch.ProductKeyMemory(256, values=table) for _ in range(2))
    """

    # The port of `product_ops` and whose it is, out of sight of parameters and state_dict.
    _port: Tensor
    _port_of: list[nn.Parameter]

    def __init__(self, n_values: int, value_dim: int) -> None:
        super().__init__()
        shape = count("n_values", n_values), count("value_dim", value_dim)
        self.weight = nn.Parameter(torch.empty(shape))
        self.reset_parameters()
        self._open_port()

    def reset_parameters(self) -> None:
        """Draw every value anew."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    @property
    def n_values(self) -> int:
        """Rows of the table."""
        return self.weight.shape[0]

    @property
    def value_dim(self) -> int:
        """Numbers per row."""
        return self.weight.shape[1]

    def forward(self, slots: Tensor, weights: Tensor) -> Tensor:
        """Sum values by weight.

        Parameters
        ----------
        slots
            int64 `[..., m]`; slot s reads row s % n_values, so that none is too large, and -1 adds nothing.
        weights
            `[..., m]`.

        Returns
        -------
        Tensor
            `[..., value_dim]`, float32 or, of a table in float64, that.

        Raises
        ------
        ShapeError
            Slots and weights of different shapes.
        DtypeError
            Slots that are not int64.
        IdError
            On the CPU: a slot below -1. Other devices do not look, since one would wait for the answer; there such a
            slot adds nothing.
        """
        tensor("slots", slots, "[..., m]"), tensor("weights", weights, "[..., m]")
        if slots.shape != weights.shape or slots.ndim == 0:
            raise ShapeError(f"slots {tuple(slots.shape)} and weights {tuple(weights.shape)}: expected [..., m] twice")
        if slots.dtype != torch.int64:
            raise DtypeError(f"slots are {slots.dtype}: expected torch.int64")
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        ids = torch.where(slots < 0, slots, slots % self.n_values)
        last = slots.shape[-1]
        out = product_ops.bag(
            self.weight, ids.reshape(-1, last), weights.reshape(-1, last).to(wide), self._port_in_graph()
        )
        return out.reshape(*slots.shape[:-1], self.value_dim)

    def extra_repr(self) -> str:
        """Show the shape."""
        return f"{self.n_values}, {self.value_dim}"

    def _open_port(self) -> None:
        self._port, self._port_of = product_ops.make_port(self.weight), [self.weight]

    def _port_in_graph(self) -> Tensor | None:
        if torch.compiler.is_compiling():
            learns = self.weight.requires_grad and torch.is_grad_enabled()
            return self._port if learns and self._port_of[0] is self.weight else None
        if self._port_of[0] is not self.weight and isinstance(self.weight, nn.Parameter):
            self._open_port()
        return None

    def _apply(self, fn: Any, recurse: bool = True) -> ValueTable:  # noqa: ANN401, FBT001, FBT002 - torch's signature
        super()._apply(fn, recurse)
        self._open_port()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name not in ("_port", "_port_of")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._open_port()


def split_values(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Sort the parameters of a model: those of its value tables, whose gradients are sparse, and all others.

    Each parameter comes once, also where layers share a table.

    Parameters
    ----------
    model
        Any module.

    Returns
    -------
    values, others
        For two optimisers. The paper on product keys advises Adam with a learning rate of 1e-3 for values, whatever
        the rest of the network takes, and kept constant. PyTorch cannot clip the norm of sparse gradients: clip that of
        the others.

    Examples
    --------
    >>> values, others = mx.torch.split_values(model)
    >>> optimizers = torch.optim.SparseAdam(values, lr=1e-3), torch.optim.AdamW(others, lr=2.5e-4)
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, ValueTable)}
    values: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        (values if id(parameter) in tables else others).append(parameter)
    return values, others
