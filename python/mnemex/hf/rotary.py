"""Keys without their rotary position, and queries turned to one fixed distance from them.

A model turns each pair of numbers of a query or key by an angle that grows with its position. Undone in a stored key,
the memory serves any place in a text: the query is turned by the angles of one distance d, so that every entry looks d
tokens away. Which numbers make a pair differs between models. No table of architectures says so here: the model itself
is run at two positions, and the layout that gives the same keys at both is the one it uses.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mnemex.errors import Unsupported
from mnemex.hf.function import FORWARD, Attended, Call, switched

if TYPE_CHECKING:
    from mnemex.hf.stack import Stack

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the angle of each pair, `[batch or 1, T, pairs]`, float32, with the model's scaling in them."""

N_PROBE_TOKENS = 6
PROBE_STARTS = (3, 40)


class Layout(NamedTuple):
    """Which numbers form pairs, and how cosines are laid out.

    `interleaved`: pairs are neighbours, not halves. `last`: the turned numbers are the last ones. `angles`: "halves"
    gives each cosine twice, one copy behind the other; "neighbours" twice, side by side; "once" as it is.
    """

    interleaved: bool
    angles: str
    last: bool


LAYOUTS = tuple(
    Layout(interleaved, angles, last)
    for last in (False, True)
    for angles in ("halves", "neighbours", "once")
    for interleaved in (False, True)
)


def angles_of(given: tuple[Tensor, Tensor], layout: Layout) -> Angles:
    """Take one cosine and sine per pair from what a model hands its attention."""
    cos, sin = (x.detach().float() for x in given)
    if layout.angles == "halves":
        half = cos.shape[-1] // 2
        return cos[..., :half], sin[..., :half]
    return (cos[..., ::2], sin[..., ::2]) if layout.angles == "neighbours" else (cos, sin)


def turn(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Turn `[batch, heads, T, dim]` by `[batch or 1, T, pairs]`, in float32; numbers outside every pair stay."""
    cos, sin = cos[:, None].to(x.device), sin[:, None].to(x.device)
    n = 2 * cos.shape[-1]
    start = x.shape[-1] - n if layout.last else 0
    part = x[..., start : start + n].float()
    a, b = (part[..., ::2], part[..., 1::2]) if layout.interleaved else part.chunk(2, -1)
    turned = (a * cos - b * sin, b * cos + a * sin)
    both = torch.stack(turned, -1).flatten(-2) if layout.interleaved else torch.cat(turned, -1)
    return torch.cat([x[..., :start], both.to(x.dtype), x[..., start + n :]], -1)


def undone(keys: Tensor, angles: Angles, layout: Layout) -> Tensor:
    """Give keys as they were before they were turned, the model's scaling taken out."""
    cos, sin = angles
    square = cos * cos + sin * sin
    return turn(keys, cos / square, -sin / square, layout)


class Turn(NamedTuple):
    """How queries are seen by the memory: a linear map, and its transpose for gradients."""

    cos: Tensor
    sin: Tensor
    layout: Layout

    def seen(self, query: Tensor) -> Tensor:
        """Turn queries."""
        return turn(query, self.cos, self.sin, self.layout)

    def gradient(self, grad: Tensor) -> Tensor:
        """Turn the gradient of turned queries back."""
        return turn(grad, self.cos, -self.sin, self.layout)


START = -1
"""Instead of a distance: every entry stands at position 0, and queries keep theirs."""


class Rotary:
    """The rotary embedding of each attached layer: its layout, and the angles of one distance.

    Raises
    ------
    Unsupported
        A layer turns its keys in a way that cannot be undone.
    """

    def __init__(self, stack: Stack, modules: dict[int, nn.Module], distance: int) -> None:
        self._stack, self._modules = stack, modules
        if "position_ids" not in _arguments(stack):
            raise _no_rotary(stack, "takes no position_ids")
        one, two = (_Probe.of(stack, modules, start, N_PROBE_TOKENS) for start in PROBE_STARTS)
        self.layouts = {index: _layout(stack, index, one, two) for index in modules}
        # Most models hand all layers one pair of tensors: what is kept for one is kept for all.
        self.leaders: dict[int, int] = {}
        for index in modules:
            same = (i for i in self.leaders if one.given.get(i, (None,))[0] is one.given.get(index, (None, 0))[0])
            self.leaders[index] = next((i for i in same if self.layouts[i] == self.layouts[index]), index)
        self.at(distance)

    def at(self, distance: int) -> None:
        """Let every entry stand this number of tokens before the query; `START`: at position 0."""
        self.distance = distance
        probe = _Probe.of(self._stack, self._modules, max(distance, 0), 1)
        self._far: dict[int, Angles] = {}
        for index, layout in self.layouts.items():
            if layout is not None:
                cos, sin = angles_of(probe.given[index], layout)
                # At position 0 an angle is 0, and the cosine is the scaling.
                scaling = torch.ones_like(cos) if distance == START else (cos * cos + sin * sin).sqrt()
                # A key in place would carry the scaling too.
                self._far[index] = (cos * scaling, sin * scaling)

    def angles(self, index: int, given: tuple[Tensor, Tensor] | None) -> Angles | None:
        """Take the angles of a forward pass; None in a layer that turns nothing."""
        layout = self.layouts[index]
        if layout is None:
            return None
        if given is None:
            raise Unsupported(f"{self._stack.name} handed layer {index} no position_embeddings: detach the memory")
        return angles_of(given, layout)

    def plain(self, index: int, keys: Tensor, angles: Angles | None) -> Tensor:
        """Give the keys of one layer as they are stored."""
        layout = self.layouts[index]
        return keys if layout is None or angles is None else undone(keys, angles, layout)

    def turn_of(self, index: int, angles: Angles | None) -> Turn | None:
        """Say how the queries of one layer, turned by `angles`, are seen by the memory."""
        layout = self.layouts[index]
        if layout is None or angles is None:
            return None
        (cos, sin), (far_cos, far_sin) = angles, self._far[index]
        if self.distance == START:
            return Turn(far_cos, far_sin, layout)
        square = cos * cos + sin * sin
        return Turn((far_cos * cos + far_sin * sin) / square, (far_sin * cos - far_cos * sin) / square, layout)


def note_angles(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001 - a hook
    """Forward pre-hook of an attention module: hand its angles to the state of the forward pass."""
    forward, given = kwargs.get(FORWARD), kwargs.get("position_embeddings")
    index = None if forward is None else forward.layers.get(module)
    if forward is not None and index is not None and given is not None:
        forward.given[index] = given


class _Probe:
    """A forward pass that looks at keys and angles."""

    def __init__(self, modules: dict[int, nn.Module]) -> None:
        self.layers = {module: index for index, module in modules.items()}
        self.given: dict[int, tuple[Tensor, Tensor]] = {}
        self.keys: dict[int, Tensor] = {}

    @classmethod
    def of(cls, stack: Stack, modules: dict[int, nn.Module], start: int, n: int) -> _Probe:
        """Run `n` tokens from position `start` on."""
        probe = cls(modules)
        device = stack.model.device
        hooks = [m.register_forward_pre_hook(note_angles, with_kwargs=True) for m in modules.values()]
        tokens = torch.arange(n, device=device)[None]
        training = stack.model.training
        try:
            stack.model.eval()
            with torch.no_grad(), torch.random.fork_rng(), switched(stack.configs(modules)):
                stack.model(
                    input_ids=tokens, position_ids=torch.arange(start, start + n, device=device)[None],
                    **({"use_cache": False} if "use_cache" in _arguments(stack) else {}), **{FORWARD: probe},
                )  # fmt: skip
        finally:
            stack.model.train(training)
            for hook in hooks:
                hook.remove()
        return probe

    def attend(self, index: int, call: Call) -> Attended:
        self.keys[index] = call.key
        return call.plain()


def _arguments(stack: Stack) -> set[str]:
    return set(inspect.signature(stack.model.forward).parameters)


def _layout(stack: Stack, index: int, one: _Probe, two: _Probe) -> Layout | None:
    """Find the layout under which a layer's keys are the same at both positions; None: it turns nothing."""
    first, second = one.keys[index], two.keys[index]
    limit = 1e-3 if first.dtype in (torch.float32, torch.float64) else 5e-2

    def gap(a: Tensor, b: Tensor) -> float:
        return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30))

    if gap(first, second) <= limit:
        return None
    if index not in one.given:
        raise _no_rotary(stack, f"hands layer {index} no position_embeddings")
    if not isinstance(one.given[index], tuple):
        raise _no_rotary(stack, f"turns the keys of layer {index} by complex numbers")
    best, found = limit, None
    for layout in LAYOUTS:
        near, far = (angles_of(probe.given[index], layout) for probe in (one, two))
        if 2 * near[0].shape[-1] > first.shape[-1]:
            continue
        difference = gap(undone(first, near, layout), undone(second, far, layout))
        if difference < best:  # of equal ones the first, where all numbers are turned
            best, found = difference, layout
    if found is None:
        raise _no_rotary(stack, f"turns the keys of layer {index} in none of {len(LAYOUTS)} known layouts")
    return found


def _no_rotary(stack: Stack, why: str) -> Unsupported:
    return Unsupported(
        f"{stack.name} {why}, so the position in its keys cannot be undone: keep keys as the model made them, "
        "Memory.for_model(model, keys='rotated')"
    )


class WindowAngles:
    """The angles of the keys in a window, `[rows, n, pairs]` for each group of layers that share them."""

    def __init__(self) -> None:
        self._groups: dict[int, Angles] = {}

    def append(self, group: int, angles: Angles, rows: int) -> None:
        """Take the angles of new keys in."""
        new = tuple(x.expand(rows, -1, -1) for x in angles)
        held = self._groups.get(group)
        cos, sin = new if held is None else (torch.cat([a, b], 1) for a, b in zip(held, new, strict=True))
        self._groups[group] = (cos, sin)

    def oldest(self, group: int, n: int) -> Angles | None:
        """Show the angles of the oldest `n` keys."""
        held = self._groups.get(group)
        return None if held is None else (held[0][:, :n], held[1][:, :n])

    def cut(self, start: int, stop: int) -> None:
        """Keep the columns from `start` to `stop`."""
        self._groups = {g: (cos[:, start:stop], sin[:, start:stop]) for g, (cos, sin) in self._groups.items()}

    def select(self, index: Tensor) -> None:
        """Let row i become what row `index[i]` was."""
        self._groups = {g: (c[index.to(c.device)], s[index.to(s.device)]) for g, (c, s) in self._groups.items()}
