"""A Neurocache beside the attention of a decoder: hooks look states up at one layer, and add what is read from there.

Hooks of attention modules run again where layers are recomputed under gradient checkpointing. What was looked up is
kept from the first run, and a token is stored once, when the whole pass has succeeded.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from mnemex._releases import check
from mnemex.errors import ArgumentError, DtypeError, Error, ShapeError, Unsupported
from mnemex.hf.stack import Stack, find_stack
from mnemex.torch import checks
from mnemex.torch.neurocache import CacheAttention, Found, Neurocache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mnemex._arrays import IntsLike

_attached: WeakSet[nn.Module] = WeakSet()


def attach_neurocache(
    model: nn.Module, cache: Neurocache | None = None, *, layer: int | Literal["auto"] = "auto", **how: Any,  # noqa: ANN401
) -> NeurocacheAttachment:  # fmt: skip
    """Give a decoder a Neurocache: one layer looks states up and writes, all from there to the top read what it found.

    What is read is added to the output of self attention, by forward hooks; no class is replaced, and `detach`, or
    leaving the `with` block, leaves the model as it was.

    Parameters
    ----------
    model
        A causal language model of transformers that `mnemex.hf.attach` takes too.
    cache
        One that was trained, with a block for each layer that reads. None: a new one, made to measure. Its queries
        start as copies of each layer's own, its keys and values as the first columns of theirs, where a layer has
        `q_proj`, `k_proj` and `v_proj`; its output as zeros, so that the model starts as it is.
    layer
        Which layer looks up; "auto": the one at three quarters of the stack, layer 18 of 24, or the next that sees its
        whole past.
    **how
        For a new cache: arguments of `mnemex.torch.Neurocache` such as `compression`, `k`, `capacity`, `raw`.

    Returns
    -------
    NeurocacheAttachment
        A context manager with `cache`, `parameters`, `reset` and `detach`.

    Raises
    ------
    Unsupported
        The model is no decoder whose attention can be found, or the layer does not see its whole past.
    ArgumentError, DtypeError, ShapeError
        A cache of other sizes than the model, or arguments beside one.

    Notes
    -----
    Every forward pass is a segment: it reads what earlier passes wrote, and is written when it ends, pads of a
    two-dimensional `attention_mask` left out. In `generate` the prompt is one segment and every token another, so feed
    a long text in pieces. Call `reset` before another text. Beams are not followed when they are reordered: generate
    greedily or by sampling.

    Run the backward pass before the next forward pass where layers are checkpointed.

    Examples
    --------
    >>> with mx.hf.attach_neurocache(model, capacity=16_384, raw=True) as a:
    ...     optimizer = torch.optim.AdamW(a.parameters(), lr=1e-4)
    ...     for segment in text.split(512, 1):
    ...         model(segment, labels=segment).loss.backward()
    """
    check("torch", torch.__version__)
    stack = find_stack(model)
    if stack.kind != "causal":
        raise Unsupported(f"{stack.name} is no decoder: a Neurocache is read by later segments of a text")
    numbers = [i for i in stack.modules if i >= _first(stack, layer)]
    if not numbers:
        raise Unsupported(f"no layer in the last quarter of {stack.name} sees its whole past: give layer")
    modules = [stack.modules[i] for i in numbers]
    if any(module in _attached for module in modules):
        raise Error(f"this {stack.name} has a Neurocache attached already: detach() that one first")
    if cache is None:
        cache = _made_for(stack, modules, how)
    elif not isinstance(cache, Neurocache):
        raise DtypeError(f"cache is a {type(cache).__name__}: expected a mnemex.torch.Neurocache")
    elif how:
        raise ArgumentError(f"{', '.join(how)}: the cache that was given decides, leave it out")
    if cache.dim != stack.config.hidden_size or len(cache.blocks) != len(modules):
        raise ShapeError(
            f"the cache has dim {cache.dim} and {len(cache.blocks)} layers, {stack.name} has "
            f"{stack.config.hidden_size} and {len(modules)} from layer {numbers[0]} on: make it so, or leave it out"
        )
    return NeurocacheAttachment(stack, numbers, modules, cache)


def _first(stack: Stack, layer: int | str) -> int:
    if isinstance(layer, str):
        if layer != "auto":
            raise ArgumentError(f"layer={layer!r}: expected 'auto' or a layer number")
        return (len(stack.modules) + len(stack.others)) * 3 // 4
    return next(iter(stack.chosen([checks.count("layer", layer, low=0)])))


def _made_for(stack: Stack, modules: list[nn.Module], how: dict[str, Any]) -> Neurocache:
    """Make a cache of the model's sizes that starts from the layers' own projections."""
    config = stack.config
    sizes = {
        "heads": config.num_attention_heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    }
    given = sorted({"dim", "layers", *sizes} & how.keys())
    if given:
        raise ArgumentError(f"{', '.join(given)}: the model decides, leave it out")
    cache = Neurocache(config.hidden_size, layers=len(modules), **sizes, **how)
    for block, module in zip(cache.blocks, modules, strict=True):
        _start_from(block, module)
    like = next(modules[0].parameters())
    return cache.to(like.device, like.dtype)


@torch.no_grad()
def _start_from(block: nn.Module, module: nn.Module) -> None:
    if not isinstance(block, CacheAttention):
        raise TypeError(f"block is a {type(block).__name__}: a Neurocache has blocks of CacheAttention")
    nn.init.zeros_(block.out.weight)
    for own, name in ((block.query, "q_proj"), (block.key, "k_proj"), (block.value, "v_proj")):
        base = getattr(getattr(module, name, None), "weight", None)
        if isinstance(base, Tensor) and base.ndim == 2 and base.is_floating_point():
            columns = base[:, : own.weight.shape[1]]
            if columns.shape == own.weight.shape:
                own.weight.copy_(columns)


class NeurocacheAttachment:
    """A Neurocache attached to a decoder; made by `attach_neurocache`. Usable as a context manager.

    Attributes
    ----------
    cache
        The module: its parameters train, its bank holds the states.
    layers
        Layers that read; the first of them looks up.
    """

    def __init__(self, stack: Stack, numbers: list[int], modules: list[nn.Module], cache: Neurocache) -> None:
        self.cache, self.layers, self._name = cache, tuple(numbers), stack.name
        self._places = {module: place for place, module in enumerate(modules)}
        self._arguments = {model: list(inspect.signature(model.forward).parameters) for model in stack.owners}
        self._outermost: nn.Module | None = None  # of the models whose forward pass is open
        self._mask: Tensor | None = None
        self._hidden: Tensor | None = None
        self._found: Found | None = None
        _attached.update(modules)
        self._hooks = [
            *(model.register_forward_pre_hook(self._before, with_kwargs=True) for model in stack.owners),
            *(model.register_forward_hook(self._after, always_call=True) for model in stack.owners),
            *(module.register_forward_hook(self._add, with_kwargs=True) for module in modules),
        ]

    def __repr__(self) -> str:
        state = "" if self._hooks else ", detached"
        return f"NeurocacheAttachment({self._name}, layers={list(self.layers)}{state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> NeurocacheAttachment:
        # A copied model carries copies of the hooks for good; they do nothing for modules that are not attached.
        return self

    def __reduce__(self) -> NoReturn:
        raise Error(f"a {self._name} with a Neurocache cannot be pickled: detach() first")

    def detach(self) -> None:
        """Leave the model as it was before; a second call does nothing."""
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        for module in self._places if hooks else ():
            _attached.discard(module)
        self._hidden = self._found = self._mask = None

    def parameters(self) -> Iterator[nn.Parameter]:
        """Give what is trained: the compressor, and the attention of each layer that reads."""
        return self.cache.parameters()

    def reset(self, rows: IntsLike | None = None) -> None:
        """Forget what these rows read so far; None: everything. A new text begins."""
        self.cache.reset(rows)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model not in self._arguments or self._outermost not in (None, model):
            return
        names = self._arguments[model][: len(args)]
        mask = {**dict(zip(names, args, strict=True)), **kwargs}.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self._outermost, self._hidden, self._found = model, None, None

    def _after(self, model: nn.Module, _: tuple[Any, ...], output: object) -> None:
        if model is not self._outermost:
            return
        hidden, self._hidden, self._outermost = self._hidden, None, None
        if output is None or hidden is None:
            return  # The pass raised.
        mask = None if self._mask is None else self._mask[:, self._mask.shape[1] - hidden.shape[1] :].bool()
        self.cache.write(hidden, mask, found=self._found)

    def _add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor | tuple[Any, ...]
    ) -> Tensor | tuple[Any, ...] | None:
        place = self._places.get(module)
        if place is None:
            return None
        hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if place == 0 and self._outermost is not None:
            self._hidden, self._found = hidden.detach(), self.cache.look_up(hidden)
        read = self.cache.attend(hidden, self._found, layer=place)
        if isinstance(output, Tensor):
            return output + read
        return (output[0] + read, *output[1:])
