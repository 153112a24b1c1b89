"""`attach` for plain PyTorch modules: attention that a model calls is answered with a memory, its code unchanged.

A forward hook of each chosen module pushes a mode in which PyTorch hands every function call over before it runs, and
pops it again. Two functions are answered: `scaled_dot_product_attention`, and `multi_head_attention_forward`, which is
all of `nn.MultiheadAttention` behind one name (its inner call of the former cannot be seen).
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from mnemex import Bank, Memory
from mnemex._releases import check
from mnemex.errors import ArgumentError, DtypeError, Error, Unsupported
from mnemex.torch import checks
from mnemex.torch.answering import Answering, leave_interrupted
from mnemex.torch.joined import Reading, joined_attention
from mnemex.torch.local import Scoring, prepare
from mnemex.torch.merges import JOINT, Bias, Gate, PerHead, learned
from mnemex.torch.retrieved import check_fits, check_metric, check_rows
from mnemex.torch.stored import Staged, stage, take_back

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mnemex import Receipt
    from mnemex.parts import Reader

MERGE = "mnemex_merge"
"""The submodule of an attached module that holds its learned merge."""

_attached: WeakSet[nn.Module] = WeakSet()


def attach(
    model: nn.Module,
    memory: Bank | Memory,
    *,
    top_k: int | Reader | None = 32,
    merge: Literal["joint"] | Bias | Gate = "joint",
    modules: Sequence[str] | None = None,
    write: Literal["off", "all"] = "off",
) -> Attachment:
    """Give the attention of a plain PyTorch model a memory.

    Parameters
    ----------
    model
        Any module.
    memory
        A bank for each attention module in order, `Memory({0: Bank(...), ...})`; a `Bank` where there is one module.
        A bank has the batch's rows (or one row, to read), and the heads and sizes of what its module attends with.
    top_k
        Entries each query reads, or a reader (`mnemex.Window`); None: every entry.
    merge
        "joint": one softmax, exact. A `Bias` or `Gate` with one number per query head is copied into each module as
        its submodule `mnemex_merge`, until `detach`.
    modules
        Names of modules, as `model.named_modules` gives them, in whose forward passes attention is answered. None:
        every `nn.MultiheadAttention`, and every module whose forward names `scaled_dot_product_attention`. Name them
        where a model attends to other tokens than its own (cross attention), which must be left out.
    write
        "all" stages the keys and values of every forward pass, to be committed by `commit`; pads are left out.

    Returns
    -------
    Attachment
        A context manager with `detach`, `commit` and `parameters`.

    Raises
    ------
    Unsupported
        No attention that can be seen, or, in the forward pass, one with options that no memory can join.
    ArgumentError, DtypeError
        An argument with another value than those above, or of another type.
    ShapeError
        A merge of other heads than an `nn.MultiheadAttention` has; in the forward pass, a bank of other heads or sizes
        than its module attends with.

    Notes
    -----
    `nn.MultiheadAttention` gives None for its weights where it reads a memory. A forward pass stages
    its tokens at its end, and none where it fails, or where staging does; passes of several threads do not meet. Keys
    and values are rounded to the type that a bank took first, and float64 to float32. Under activation
    checkpointing, checkpoint attached modules whole, and run the backward pass before the next forward pass, whose
    version of the memory it would read.

    Examples
    --------
    >>> bank = mx.Bank(rows=2, heads=8, key_dim=64, value_dim=64)
    >>> with mx.torch.attach(encoder_layer, bank, write="all") as a:
    ...     encoder_layer(x)
    ...     a.commit()
    """
    check("torch", torch.__version__)
    if write not in ("off", "all"):
        raise ArgumentError(f"write={write!r}: expected 'off' or 'all'")
    per_head, top_k = learned(merge), checks.top_k(top_k)
    if not isinstance(model, nn.Module):
        raise DtypeError(f"model is a {type(model).__name__}: expected an nn.Module")
    chosen = _chosen(model, modules)
    if isinstance(memory, Bank):
        memory = Memory({0: memory})
    if not isinstance(memory, Memory):
        raise DtypeError(
            f"memory is a {type(memory).__name__}: expected a Memory with a bank for each attention module, or a Bank"
        )
    if memory.layers != tuple(range(len(chosen))):
        raise ArgumentError(
            f"memory has banks {list(memory.layers)}, {type(model).__name__} has {len(chosen)} attention modules "
            f"({', '.join(chosen)}): give a bank for each, Memory({{0: Bank(...), ...}}), or fewer modules="
        )
    for layer in memory.layers:
        check_metric(memory[layer])
    taken = [name for name, module in chosen.items() if module in _attached]
    if taken:
        raise Error(f"{taken} of this {type(model).__name__} have a memory attached already: detach() that one first")
    if per_head is not None:
        for name, module in chosen.items():
            if isinstance(module, nn.MultiheadAttention):
                per_head.check_heads(module.num_heads, f"{name or type(module).__name__} has")
    return Attachment(model, list(chosen.values()), memory, top_k, per_head, write)


def _chosen(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """List the attention modules by name."""
    all_modules = dict(model.named_modules())
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise DtypeError(f"modules={names!r}: expected a list of names out of model.named_modules()")
        unknown = [name for name in names if name not in all_modules]
        if unknown or not names:
            raise ArgumentError(f"modules={list(names)!r}: expected names out of model.named_modules(), not {unknown}")
        return {name: all_modules[name] for name in names}
    found = {name: module for name, module in all_modules.items() if _attends(module)}
    if not found:
        raise Unsupported(
            f"{type(model).__name__} has no nn.MultiheadAttention and no module whose forward names "
            "scaled_dot_product_attention: name the modules that call it with modules=, or use mnemex.torch.attention "
            "inside"
        )
    return found


def _attends(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    named = code is not None and "scaled_dot_product_attention" in code.co_names
    return isinstance(module, nn.MultiheadAttention) or named


class Attachment:
    """A memory attached to the attention of a model; made by `attach`. Usable as a context manager.

    Attributes
    ----------
    memory
        A bank for each module, by number.
    modules
        The attention modules.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: list[nn.Module],
        memory: Memory,
        top_k: int | Reader | None,
        merge: PerHead | None,
        write: str,
    ) -> None:
        self.memory, self.modules, self.top_k = memory, modules, top_k
        self.merge = JOINT if merge is None else merge.merge
        self._writes = write == "all"
        self._snapshot = memory.snapshot()
        # Forward passes of several threads do not meet: each keeps its own tokens until its end.
        self._passes = threading.local()
        self._staging = threading.Lock()
        self._hooks = [
            model.register_forward_pre_hook(self._before, prepend=True),
            model.register_forward_hook(self._after, always_call=True),
        ]
        for index, module in enumerate(modules):
            _attached.add(module)
            answering = Answering(module, partial(self._attend, index))
            self._hooks += [
                module.register_forward_pre_hook(answering.push),
                module.register_forward_hook(answering.pop, always_call=True),
            ]
            if merge is not None:
                device = next((p.device for p in module.parameters()), None)
                module.add_module(MERGE, copy.deepcopy(merge).to(device))
        self._model = model
        # Pads make nn.TransformerEncoder pack its input for the fused path, which no attention call comes out of.
        encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder)]
        self._nested = [(encoder, encoder.use_nested_tensor) for encoder in encoders]
        for encoder in encoders:
            encoder.use_nested_tensor = False

    def __repr__(self) -> str:
        state = "" if self._hooks else ", detached"
        return f"Attachment({type(self._model).__name__}, modules={len(self.modules)}, top_k={self.top_k}{state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        return self

    def __reduce__(self) -> NoReturn:
        raise Error("a model with a memory attached cannot be pickled: detach() first, and save the memory by itself")

    def detach(self) -> None:
        """Leave the model as it was before; a second call does nothing."""
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        leave_interrupted()
        for encoder, nested in self._nested if hooks else ():
            encoder.use_nested_tensor = nested
        for module in self.modules if hooks else ():
            _attached.discard(module)
            if hasattr(module, MERGE):
                delattr(module, MERGE)

    def commit(self) -> list[Receipt]:
        """Make what was staged visible to later forward passes; one receipt per bank."""
        return self.memory.commit()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Give the learned parameters of the merge, module by module; joint attention has none."""
        for module in self.modules:
            merge = getattr(module, MERGE, None)
            if merge is not None:
                yield from merge.parameters()

    def _before(self, module: nn.Module, _: tuple[Any, ...]) -> None:
        if module is self._model:
            # What an interrupt from the keyboard left, which skips forward hooks, is dropped here.
            self._passes.kept = []
            # A layer that runs again under checkpointing reads this version once more, and stages nothing.
            self._passes.snapshot = self._snapshot = self.memory.snapshot()

    def _after(self, module: nn.Module, _: tuple[Any, ...], output: object) -> None:
        if module is self._model:
            kept, self._passes.kept = getattr(self._passes, "kept", None), None
            if output is not None and kept:
                self._stage(kept)

    def _stage(self, kept: list[tuple[int, Tensor, Tensor, Any]]) -> None:
        """Stage the tokens of a forward pass in every module, or where one fails in none."""
        staged: Staged = []
        with self._staging:
            try:
                for index, keys, values, pads in kept:
                    bank = self.memory[index]
                    staged.append((bank, stage(bank, keys, values, mask=pads, nonfinite="skip")))
            except BaseException:
                take_back(staged)
                raise

    def _attend(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        causal: bool,
        dropout: float,
        scale: float | None,
        valid: Tensor | None,
    ) -> Tensor | None:
        """Attend in one module; None where the memory holds nothing yet, and PyTorch's own answer is the exact one."""
        # A backward pass may run layers again in a thread that ran no forward pass.
        bank = getattr(self._passes, "snapshot", self._snapshot)[index]
        check_rows(bank, query.shape[0])
        check_fits(f"module {index}", bank, key, value)
        kept = getattr(self._passes, "kept", None)
        if self._writes and kept is not None:
            kept.append((index, key.detach(), value.detach(), None if valid is None else valid.cpu().numpy()))
        merge = getattr(self.modules[index], MERGE, None)
        if not len(bank) and merge is None:
            return None
        if torch.is_autocast_enabled(query.device.type):
            lower = torch.get_autocast_dtype(query.device.type)
            query, key, value = (x.to(lower) for x in (query, key, value))
        scoring = Scoring(query.shape[-1] ** -0.5 if scale is None else scale, causal=causal, dropout=dropout)
        return joined_attention(
            query, key, value, prepare(mask, query.dtype), scoring, Reading(bank, self.top_k, self.merge),
            weight=None if merge is None else merge(query),
        )  # fmt: skip
