"""The attention and mask functions registered with transformers, and the configs that name them.

transformers looks up attention by the name in a model's config, process-wide and for good, so the functions hold no
state: what they need arrives with the call, in a keyword argument that travels from the model's forward to every
attention layer. A call without it is another model's that shares the config; it goes to the function this one stands
in for.

There is one name for each function it can stand in for. A name without a mask function of its own would silently lose
causality and padding; "flash", "sdpa" or "/" in a name would change how transformers treats it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mnemex.errors import Unsupported

FORWARD = "mnemex_forward"
"""The keyword argument that carries the state of one forward pass."""

MERGE = "mnemex_merge"
"""The submodule of an attached attention module that holds its learned merge: so it trains, moves and saves with it."""

NAMES = {"sdpa": "mnemex", "eager": "mnemex_eager"}
_BASES = {name: base for base, name in NAMES.items()}

Attended = tuple[Tensor, Tensor | None]
"""The output `[batch, queries, heads, dim]`, and the weights where they are shown."""

AttentionFunction = Callable[..., Attended]


class Call(NamedTuple):
    """One call of an attention function: the name of the function ours stands in for, and what it was given."""

    base: str
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    kwargs: dict[str, Any]

    def plain(self) -> Attended:
        """Attend as the module would without us."""
        function = base_function(type(self.module), self.base)
        return function(self.module, self.query, self.key, self.value, self.mask, **self.kwargs)


class Forward(Protocol):
    """The state of one forward pass, as the attention function sees it."""

    layers: dict[nn.Module, int]

    def attend(self, index: int, call: Call) -> Attended:
        """Attend in the attached layer `index`."""
        ...


attached_modules: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Attention modules that read a memory, each with the class name of its model."""


def _dispatch(call: Call) -> Attended:
    module, kwargs = call.module, call.kwargs
    forward: Forward | None = kwargs.pop(FORWARD, None)
    if kwargs.get("indices") is not None or kwargs.get("block_indices") is not None:
        # These models decide by the name of the attention function whether the selection is in the mask.
        raise Unsupported(
            f"{type(module).__name__} selects keys itself (sparse attention), which only works under the names "
            "'sdpa' and 'eager': detach the memory from this model"
        )
    if forward is not None:
        index = forward.layers.get(module)
        if index is not None:
            return forward.attend(index, call)
    elif module in attached_modules:
        raise Unsupported(
            f"{type(module).__name__} of {attached_modules[module]} was called without the state of its forward "
            "pass: call the model, not the layer; a model that does not pass keyword arguments on to its attention "
            "cannot be attached"
        )
    return call.plain()


def _over(base: str) -> AttentionFunction:
    """Make the function that stands in for `base`."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Attended:
        return _dispatch(Call(base, module, query, key, value, attention_mask, kwargs))

    return attention


_FUNCTIONS: dict[str, tuple[AttentionFunction, Callable[..., Any]]] = {
    "sdpa": (_over("sdpa"), sdpa_mask),
    "eager": (_over("eager"), eager_mask),
}
"""By what they stand in for: our attention function, and the mask function that its name needs."""

_found: dict[tuple[type, str], AttentionFunction] = {}


def base_function(module_type: type[nn.Module], base: str) -> AttentionFunction:
    """Find the function that the class would call without us: its file's own, where it defines one."""
    known = _found.get((module_type, base))
    if known is not None:
        return known
    name = "eager_attention_forward" if base == "eager" else "ALL_ATTENTION_FUNCTIONS"
    for parent in module_type.__mro__:
        found = getattr(sys.modules.get(parent.__module__), name, None)
        if found is not None:
            function: AttentionFunction = found if base == "eager" else found[base]
            return _found.setdefault((module_type, base), function)
    raise Unsupported(f"{module_type.__name__}: no {name} in the file of any of its classes")


def register() -> None:
    """Register both names with transformers. Repeating it changes nothing."""
    for base, (function, mask) in _FUNCTIONS.items():
        name = NAMES[base]
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, mask)
        if name not in ALL_ATTENTION_FUNCTIONS or name not in ALL_MASK_ATTENTION_FUNCTIONS:
            raise Unsupported(
                f"transformers {transformers.__version__} did not take the attention and mask functions of {name!r}, "
                "without which causality and padding would be lost: install a release that mnemex.hf.attach names"
            )


class _Switched:
    """A config that names our function: what it named before, and for how many attachments."""

    def __init__(self, config: PreTrainedConfig, original: str | None) -> None:
        self.config, self.original, self.users = config, original, 0


_switched: dict[int, _Switched] = {}


def base_of(config: PreTrainedConfig) -> str:
    """Tell which attention implementation a config names, looking through our own names."""
    named = config._attn_implementation or "eager"
    return _BASES.get(named, named)


def switch(configs: Iterable[PreTrainedConfig]) -> None:
    """Let the configs name our function. Models built from one config object share it, so this is counted."""
    register()
    for config in configs:
        entry = _switched.get(id(config))
        if entry is None:
            named = config._attn_implementation
            entry = _switched[id(config)] = _Switched(config, _BASES.get(named, named))
            # The attribute behind the property, which alone leaves configs of vision towers as they are.
            config._attn_implementation_internal = NAMES[base_of(config)]
        entry.users += 1


def restore(configs: Iterable[PreTrainedConfig]) -> None:
    """Undo one `switch`; the last one restores what the config named before."""
    for config in configs:
        entry = _switched[id(config)]
        entry.users -= 1
        if entry.users == 0:
            config._attn_implementation_internal = entry.original
            del _switched[id(config)]


@contextmanager
def switched(configs: Iterable[PreTrainedConfig]) -> Iterator[None]:
    """`switch` for the length of a block."""
    configs = list(configs)
    switch(configs)
    try:
        yield
    finally:
        restore(configs)
