"""What an attached module's attention calls are answered with: PyTorch's two attention functions, with a memory.

While a module runs, a mode is on in which PyTorch hands every function call over before it runs. Modes belong to a
thread, so each thread pushes and pops its own; none is left on when a forward pass fails. An interrupt from the
keyboard skips hooks, so a mode answers only while its module is among the callers, and the next forward pass or
`detach` turns it off.
"""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mnemex.errors import ShapeError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable


class Attend(Protocol):
    """Attention over local keys and the memory of a module, or None while the memory is empty."""

    def __call__(
        self,
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
        """Attend: queries `[B, Hq, Q, Dk]`, keys `[B, H, K, Dk]`; `valid` `[B, K]` is False for pads."""
        ...


class Answering:
    """The hooks of one module, which turn its mode on and off."""

    def __init__(self, module: nn.Module, attend: Attend) -> None:
        self.module, self._attend = module, attend

    def __deepcopy__(self, memo: dict[int, Any]) -> Answering:
        # A copied model carries copies of the hooks; they do nothing for modules that are not attached.
        return self

    def push(self, module: nn.Module, _: tuple[Any, ...]) -> None:
        """Turn the mode on: a forward pre-hook."""
        if module is self.module:
            leave_interrupted()
            mode = _Mode(module, self._attend)
            _modes().append(mode)
            mode.__enter__()

    def pop(self, module: nn.Module, _: tuple[Any, ...], output: object) -> None:
        """Turn the mode off: a forward hook that is always called, without an output where the pass failed."""
        modes = _modes()
        if module is not self.module or all(mode.module is not module for mode in modes):
            return
        while True:  # those of modules within that were interrupted go too
            mode = modes.pop()
            mode.__exit__(None, None, None)
            if mode.module is module:
                break
        if output is not None and not mode.seen:
            raise Unsupported(
                f"{type(module).__name__} attended in no way that can be seen: it must be an nn.MultiheadAttention or "
                "call torch.nn.functional.scaled_dot_product_attention; leave it out with modules="
            )


def leave_interrupted() -> None:
    """Turn off what an interrupt from the keyboard left on in this thread."""
    modes = _modes()
    while modes and not modes[-1].is_running():
        modes.pop().__exit__(None, None, None)


_thread = threading.local()


def _modes() -> list[_Mode]:
    """List the modes that are on in this thread, innermost last."""
    modes: list[_Mode] | None = getattr(_thread, "modes", None)
    if modes is None:
        modes = _thread.modes = []
    return modes


class _Mode(TorchFunctionMode):
    """Answers attention; every other function runs as ever."""

    def __init__(self, module: nn.Module, attend: Attend) -> None:
        super().__init__()
        self.name, self.attend, self.seen = type(module).__name__, attend, False
        self.module = module

    def is_running(self) -> bool:
        """Whether the module is among the callers."""
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code is _CALL and frame.f_locals.get("self") is self.module:
                return True
            frame = frame.f_back
        return False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function gives
        kwargs = kwargs or {}
        if func not in _ATTENTIONS or not self.is_running():
            return func(*args, **kwargs)
        self.seen = True
        if func is functional.scaled_dot_product_attention:
            answer: Any = self._dot_product(*args, **kwargs)
        else:
            given = _signature.bind(*args, **kwargs)
            given.apply_defaults()
            answer = self._multi_head(given.arguments)
        return func(*args, **kwargs) if answer is None else answer

    def _dot_product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 - PyTorch's signature
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: FBT001, FBT002, ARG002
    ) -> Tensor | None:
        if query.ndim != 4:
            raise ShapeError(
                f"{self.name} attends with queries {list(query.shape)}: expected [batch, heads, tokens, dim]"
            )
        return self.attend(
            query, key, value, attn_mask, causal=is_causal, dropout=dropout_p, scale=scale,
            valid=_valid(attn_mask, query.shape[0], key.shape[2]),
        )  # fmt: skip

    def _multi_head(self, given: dict[str, Any]) -> tuple[Tensor, None] | None:
        for name in ("bias_k", "bias_v", "static_k", "static_v"):
            if given[name] is not None:
                raise Unsupported(f"{self.name} attends with {name}, a key or value of no token: leave it out")
        if given["add_zero_attn"]:
            raise Unsupported(f"{self.name} attends with add_zero_attn, a key of no token: leave it out")
        sides = [given["query"], given["key"], given["value"]]
        unbatched = sides[0].ndim == 2
        query, key, value = (
            _projected(x.unsqueeze(1) if unbatched else x, *which, given["num_heads"])
            for x, which in zip(sides, _weights(given), strict=True)
        )
        batch, n_keys = key.shape[0], key.shape[2]
        pads = given["key_padding_mask"]
        pads = pads[None] if pads is not None and unbatched else pads
        mask = _joint_mask(given["attn_mask"], pads, query.shape, n_keys)
        valid = None
        if pads is not None:
            valid = ~pads if pads.dtype == torch.bool else pads > -torch.inf
        elif mask is not None:
            valid = _valid(mask, batch, n_keys)
        out = self.attend(
            query, key, value, mask, causal=False, dropout=given["dropout_p"] if given["training"] else 0.0,
            scale=None, valid=valid,
        )  # fmt: skip
        if out is None:
            return None
        out = functional.linear(out.permute(2, 0, 1, 3).flatten(2), given["out_proj_weight"], given["out_proj_bias"])
        return (out.squeeze(1) if unbatched else out), None


_ATTENTIONS = (functional.scaled_dot_product_attention, functional.multi_head_attention_forward)
_CALL = nn.Module.__call__.__code__
_signature = inspect.signature(functional.multi_head_attention_forward)


def _weights(given: dict[str, Any]) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of the projections of query, key and value."""
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    separate = given["use_separate_proj_weight"]
    weights = [given[name] for name in names] if separate else given["in_proj_weight"].chunk(3)
    bias = given["in_proj_bias"]
    return list(zip(weights, (None,) * 3 if bias is None else bias.chunk(3), strict=True))


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """Project `[T, B, E]` and divide it into heads `[B, heads, T, dim]`."""
    return functional.linear(x, weight, bias).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)


def _joint_mask(mask: Tensor | None, pads: Tensor | None, query: tuple[int, ...], n_keys: int) -> Tensor | None:
    """Join the masks of `nn.MultiheadAttention`, where True blocks, into one where True attends."""
    batch, heads, n_queries = query[:3]
    if mask is not None:
        mask = mask.reshape(-1, heads, n_queries, n_keys) if mask.ndim == 3 else mask[None, None]
    parts = [x for x in (mask, None if pads is None else pads.reshape(batch, 1, 1, n_keys)) if x is not None]
    if not parts:
        return None
    if all(x.dtype == torch.bool for x in parts):
        joint = ~parts[0]
        return joint if len(parts) == 1 else joint & ~parts[1]
    additive = [
        torch.zeros_like(x, dtype=torch.get_default_dtype()).masked_fill(x, -torch.inf) if x.dtype == torch.bool else x
        for x in parts
    ]
    return additive[0] if len(parts) == 1 else additive[0] + additive[1]


def _valid(mask: Tensor | None, batch: int, n_keys: int) -> Tensor | None:
    """Tell which tokens may attend to themselves, `[batch, K]`; the others are pads. None: the mask is not square."""
    if mask is None or mask.ndim < 2 or mask.shape[-1] != n_keys or mask.shape[-2] != n_keys:
        return None
    mask = mask[(None,) * (4 - mask.ndim)]
    own = mask[:, 0].diagonal(0, -2, -1)
    return (own if own.dtype == torch.bool else own > -torch.inf).expand(batch, -1)
