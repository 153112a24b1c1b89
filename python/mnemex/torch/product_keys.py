"""The trainable layer of product-key memories: queries meet pairs of sub-keys, the best slots give their values.

The parts are options of one module, since published systems differ in two or three of them; `mnemex.recipes` names the
systems.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnemex.errors import ArgumentError, DtypeError, ShapeError, StateError
from mnemex.torch import product_ops
from mnemex.torch.checks import count, flag, tensor
from mnemex.torch.product_values import ValueTable


class Usage(NamedTuple):
    """How evenly the slots of a memory are used.

    Attributes
    ----------
    share
        Share of the slots with weight, 0 to 1.
    kl
        Kullback-Leibler divergence of the slots' share of the weight from uniform, in nats: 0 where all have the same,
        the log of the number of slots where one has it all. NaN before anything was read.
    """

    share: float
    kl: float


class ProductKeyMemory(nn.Module):
    """A feed-forward layer of n_keys ** 2 slots, of which each token reads k per head.

    Maps `[..., dim]` to `[..., dim]`. A query is split in two; its scores with n_keys rows and n_keys columns of
    sub-keys, added pair by pair, rank all n_keys ** 2 slots, and the k best of each head are found exactly. Their
    values, weighed by a softmax over the k, are summed over all heads.

    Parameters
    ----------
    dim
        Width of the input.
    n_keys
        Rows, and columns, of sub-keys per head.
    heads
        Queries per token; each has its own sub-keys, and all read the same values.
    k
        Slots per head. Where there are fewer, all are read.
    key_dim
        Width of a query. Rows take the first half; if it is odd, the larger one.
    values
        A `ValueTable`, which other layers may share; or the number of rows of a table of its own; None: n_keys ** 2.
        Slot s reads row s modulo the rows.
    value_dim
        Width of a table of its own; None: `dim`.
    batch_norm
        Normalise queries over the batch. It keeps slots in use in large memories, and depends on what else is in the
        batch: padding counts. A query with NaN or infinity counts as zeros, so that it spoils neither the others nor
        the running statistics. In training it takes 2 tokens or more.
    softmax
        Weights are the softmax of the scores of a head's k slots; False: the scores themselves.
    gated
        Map the sum y to Wv (y * silu(Wg x)), as Memory+ does; Wv and Wg have no bias.
    track_usage
        Add up how much weight each slot gets, from every call, for `usage`.

    Attributes
    ----------
    rows, columns
        Sub-keys, parameters `[heads, n_keys, ceil(key_dim / 2)]` and `[heads, n_keys, floor(key_dim / 2)]`. They start
        uniform within (key_dim / 2) ** -0.5 of 0.
    values
        The `ValueTable`. Its gradient is sparse: see `split_values`.
    mass, hits
        With track_usage: the weight that each slot got since the last `reset_usage`, float64 `[n_keys ** 2]` (of raw
        scores their absolute values), and how many tokens and heads read it, int64. Not in the state_dict.

    Raises
    ------
    ArgumentError
        A number below 1, a key_dim below 2.
    ShapeError
        Without a gate, values of another width than `dim`.

    Notes
    -----
    Lample et al., "Large Memory Layers with Product Keys" (2019); gate and shared values: Berges et al., "Memory Layers
    at Scale" (2024). On the CPU, in float32 and the half precisions, scores are exact: summed in float64, rounded once.
    In float64 and on other devices plain torch finds the same slots, but for those whose scores differ by less than a
    rounding of float32 at the k-th place. A token with NaN or infinity in a query gives NaN, and no error; the
    gradients of the linear maps that it went through are NaN then, whatever the loss makes of it. Gradients reach the
    input, the query network, and the sub-keys and values that were read; they have no second derivatives.
    Where layers run twice under gradient checkpointing, usage counts twice.

    Examples
    --------
    >>> memory = mx.torch.ProductKeyMemory(256, 128, batch_norm=True)
    >>> x = x + memory(x)
    """

    mass: Tensor | None
    hits: Tensor | None

    def __init__(
        self,
        dim: int,
        n_keys: int = 512,
        *,
        heads: int = 4,
        k: int = 32,
        key_dim: int = 256,
        values: ValueTable | int | None = None,
        value_dim: int | None = None,
        batch_norm: bool = False,
        softmax: bool = True,
        gated: bool = False,
        track_usage: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.n_keys, self.heads = count("dim", dim), count("n_keys", n_keys), count("heads", heads)
        self.k, self.key_dim = count("k", k), count("key_dim", key_dim, low=2)
        self.softmax = flag("softmax", softmax)
        self.query = nn.Linear(self.dim, self.heads * self.key_dim)
        self.norm = nn.BatchNorm1d(self.heads * self.key_dim) if flag("batch_norm", batch_norm) else None
        half = self.key_dim // 2
        self.rows = nn.Parameter(torch.empty(self.heads, self.n_keys, self.key_dim - half))
        self.columns = nn.Parameter(torch.empty(self.heads, self.n_keys, half))
        self.values = _table(values, self.n_slots, self.dim, value_dim)
        self.gate = self.out = None
        if flag("gated", gated):
            self.gate = nn.Linear(self.dim, self.values.value_dim, bias=False)
            self.out = nn.Linear(self.values.value_dim, self.dim, bias=False)
        elif self.values.value_dim != self.dim:
            raise ShapeError(
                f"values are {self.values.value_dim} wide, dim is {self.dim}: make them the same, or gated=True"
            )
        track = flag("track_usage", track_usage)
        for name, kind in (("mass", torch.float64), ("hits", torch.int64)):
            counts = torch.zeros(self.n_slots, dtype=kind) if track else None
            self.register_buffer(name, counts, persistent=False)
        self._reset_own()

    @property
    def n_slots(self) -> int:
        """Pairs of a row and a column."""
        return self.n_keys**2

    def reset_parameters(self) -> None:
        """Draw every parameter anew, those of a shared table too."""
        self._reset_own()
        self.values.reset_parameters()

    def _reset_own(self) -> None:
        bound = (self.key_dim / 2) ** -0.5
        for sub_keys in (self.rows, self.columns):
            nn.init.uniform_(sub_keys, -bound, bound)
        self.query.reset_parameters()
        if self.norm is not None:
            self.norm.reset_parameters()
        for projection in (self.gate, self.out):
            if projection is not None:
                nn.init.normal_(projection.weight, std=self.dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Read the memory.

        Parameters
        ----------
        x
            `[..., dim]`.

        Returns
        -------
        Tensor
            `[..., dim]` in the dtype of `x`, behind a gate under autocast in that of autocast. A row of `x` with NaN or
            infinity gives NaN.

        Raises
        ------
        ShapeError
            The last axis is not `dim`; or a single token in training with batch_norm.
        DtypeError
            `x` is not a tensor.
        """
        slots, weights, good = self._read(tensor("x", x, "[..., dim]"), learn=True)
        self._count(slots, weights)
        found = self.values(slots, weights)  # [..., value_dim]
        # A query that finds nothing would add zeros: whoever looks at the output has to see that it was bad.
        found = torch.where(good, found, torch.nan).to(x.dtype)
        if self.gate is not None and self.out is not None:
            found = self.out(found * nn.functional.silu(self.gate(x)))
        return found

    def lookup(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tell what each token reads, and change nothing: neither usage nor the running statistics of batch_norm.

        In training, queries are normalised by the statistics of this very batch, as `forward` does.

        Parameters
        ----------
        x
            `[..., dim]`.

        Returns
        -------
        slots, weights
            `[..., heads * k]`, best first within a head. Slots are int64, -1 where there are fewer than k; slot s is
            row s // n_keys and column s % n_keys.

        Raises
        ------
        ShapeError, DtypeError
            As `forward` does.
        """
        slots, weights, _ = self._read(tensor("x", x, "[..., dim]"), learn=False)
        return slots, weights

    def _read(self, x: Tensor, *, learn: bool) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise ShapeError(f"x {tuple(x.shape)}: expected [..., {self.dim}]")
        lead = x.shape[:-1]
        queries = self.query(x.reshape(-1, self.dim))  # [T, heads * key_dim]
        if self.norm is not None:
            queries = self._normalised(self.norm, queries, learn=learn)
        good = queries.isfinite().all(-1, keepdim=True)
        # Autocast gives queries of another dtype than sub-keys: neither loses bits.
        wide = torch.promote_types(queries.dtype, self.rows.dtype)
        rows, columns, queries = (x.to(wide) for x in (self.rows, self.columns, queries))
        found = product_ops.lookup(rows, columns, queries.unflatten(-1, (self.heads, self.key_dim)), self.k)
        there = found.ids >= 0
        scores = torch.where(there, found.scores, 0)
        if self.softmax:
            # Padding weighs nothing, and where all is padding there is no softmax.
            scores = torch.where(there, found.scores, torch.finfo(scores.dtype).min).softmax(-1)
        weights = torch.where(there, scores, 0)
        slots, weights = (x.reshape(*lead, self.heads * self.k) for x in (found.ids, weights))
        return slots, weights, good.reshape(*lead, 1)

    @staticmethod
    def _normalised(norm: nn.BatchNorm1d, queries: Tensor, *, learn: bool) -> Tensor:
        if norm.training and len(queries) == 1:
            raise ShapeError(
                "x is a single token, and batch_norm in training needs 2 or more: give it more, or call eval() first"
            )
        good = queries.isfinite().all(-1, keepdim=True)
        queries = torch.where(good, queries, 0)
        if learn or not norm.training:
            queries = norm(queries)
        else:
            queries = nn.functional.batch_norm(queries, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        return torch.where(good, queries, torch.nan)

    @torch.no_grad()
    def _count(self, slots: Tensor, weights: Tensor) -> None:
        if self.mass is None or self.hits is None:
            return
        there = slots >= 0
        slots = torch.where(there, slots, 0).flatten()
        self.mass.index_add_(0, slots, weights.abs().flatten().to(self.mass.dtype))
        self.hits.index_add_(0, slots, there.flatten().to(self.hits.dtype))

    def usage(self) -> Usage:
        """Tell how evenly slots were used since the last `reset_usage`.

        Raises
        ------
        StateError
            The memory was made without track_usage.
        """
        mass = self._counted()[0].double()
        z = mass / mass.sum()
        kl = math.log(self.n_slots) + float(torch.special.xlogy(z, z).sum())
        return Usage(share=float((mass > 0).double().mean()), kl=kl)

    def reset_usage(self) -> None:
        """Count from nothing again.

        Raises
        ------
        StateError
            The memory was made without track_usage.
        """
        for counts in self._counted():
            counts.zero_()

    def _counted(self) -> tuple[Tensor, Tensor]:
        if self.mass is None or self.hits is None:
            raise StateError("usage was not tracked: make the memory with track_usage=True")
        return self.mass, self.hits

    def _apply(self, fn: Any, recurse: bool = True) -> ProductKeyMemory:  # noqa: ANN401, FBT001, FBT002 - torch's
        super()._apply(fn, recurse)
        if self.mass is not None:  # a layer made half precision still counts beyond 256
            self.mass = self.mass.double()
        return self

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.dim}, {self.n_keys}, heads={self.heads}, k={self.k}, softmax={self.softmax}"


def _table(values: ValueTable | int | None, n_slots: int, dim: int, value_dim: int | None) -> ValueTable:
    if not isinstance(values, nn.Module):
        return ValueTable(n_slots if values is None else values, dim if value_dim is None else value_dim)
    if not isinstance(values, ValueTable):
        raise DtypeError(f"values is a {type(values).__name__}: expected a ValueTable or a number of rows")
    if value_dim not in (None, values.value_dim):
        raise ArgumentError(f"value_dim={value_dim}, the table has {values.value_dim}: leave value_dim out")
    return values
