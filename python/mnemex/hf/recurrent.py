"""Layers beside attention that keep a state instead of keys: Mamba, gated delta rules, linear attention.

They read no memory, and take their state from the cache as ever. That has to be right for what the memory is given to
be right, so what transformers does with it is looked at, and not taken for granted.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from mnemex.errors import Unsupported
from mnemex.hf.function import FORWARD

if TYPE_CHECKING:
    from torch import nn

    from mnemex.hf.stack import Stack

N_BEFORE, N_AFTER = 4, 2


def own_cache(model: nn.Module) -> str | None:
    """Name the class of cache that a model asks for, where it is none of those that transformers' models share."""
    forward = inspect.unwrap(type(model).forward)
    known = getattr(forward, "__globals__", {})
    named = (known.get(name) for name in getattr(getattr(forward, "__code__", None), "co_names", ()))
    own = (x for x in named if isinstance(x, type) and issubclass(x, Cache) and x.__module__ != Cache.__module__)
    return next((x.__name__ for x in own), None)


class Recurrence:
    """What the recurrent layers of a model do between forward passes; found out when it is first asked for."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._forgets: bool | None = None

    def check(self, what: str) -> None:
        """Raise where several tokens that follow others would be read without the state of these."""
        if self._forgets is None:
            self._forgets = _forgets(self._stack)
        if self._forgets:
            raise Unsupported(
                f"{self._stack.name} forgets the state of its recurrent layers where several tokens follow others, "
                f"with any cache of transformers: {what}"
            )


def _forgets(stack: Stack) -> bool:
    """Whether it makes no difference, to the bit, what recurrent layers remember."""
    if not any(hasattr(layer, "recurrent_states") for layer in DynamicCache(config=stack.config).layers):
        return False
    tokens = torch.arange(1, N_BEFORE + N_AFTER + 1, device=stack.model.device)[None]
    answers: list[Tensor] = []
    for forgotten in (False, True):
        cache = DynamicCache(config=stack.config)
        # The state of the pass keeps the memory out of it.
        given: dict[str, Any] = {"past_key_values": cache, "use_cache": True, FORWARD: SimpleNamespace(layers={})}
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            stack.model(input_ids=tokens[:, :N_BEFORE], **given)
            states = _states(cache)
            if not states:
                return False
            for state in states if forgotten else ():
                state.zero_()
            answers.append(stack.model(input_ids=tokens[:, N_BEFORE:], **given)[0])
    return torch.equal(*answers)


def _states(cache: DynamicCache) -> list[Tensor]:
    """List the states that recurrent layers have left in the cache; windows of convolutions are not among them."""
    held = (getattr(layer, "recurrent_states", None) for layer in cache.layers)
    each = (states.values() if isinstance(states, dict) else [states] for states in held)
    return [state for states in each for state in states if isinstance(state, Tensor)]
