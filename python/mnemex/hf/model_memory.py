"""A memory made to measure: one bank for each layer of a model that can read it.

The sizes are read off the model at work: one token goes through it, and its attention layers show the shapes of their
keys and values. No table of configs is needed, and a model that would not hand our state to its attention is found out.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn

from mnemex.capacity import of_layers
from mnemex.errors import ArgumentError, Unsupported
from mnemex.hf.fingerprint import fingerprint
from mnemex.hf.function import FORWARD, Attended, Call, switched
from mnemex.hf.rotary import Rotary
from mnemex.hf.stack import Layers, Stack, find_stack
from mnemex.torch import checks
from mnemex.torch.retrieved import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mnemex import Memory
    from mnemex.torch.merges import PerHead


class BankShape(NamedTuple):
    """Key/value heads and sizes of one layer."""

    heads: int
    key_dim: int
    value_dim: int


class _Probe:
    """A forward pass that only looks at shapes."""

    def __init__(self, modules: Mapping[int, nn.Module]) -> None:
        self.layers = {module: index for index, module in modules.items()}
        self.shapes: dict[int, BankShape] = {}
        self.query_heads: dict[int, int] = {}

    def attend(self, index: int, call: Call) -> Attended:
        if index in self.shapes:
            raise Unsupported(
                f"{type(call.module).__name__} attends more than once in one forward pass, with other values each "
                f"time: leave layer {index} out with layers="
            )
        self.query_heads[index] = call.query.shape[1]
        self.shapes[index] = BankShape(call.key.shape[1], call.key.shape[3], call.value.shape[3])
        return call.plain()


def memory_for_model(
    model: nn.Module,
    *,
    layers: Layers = "auto",
    keys: Literal["rotated", "plain"] = "rotated",
    rows: int | Literal["auto"] = "auto",
    **bank: Any,  # noqa: ANN401 - whatever `Bank` takes
) -> Memory:
    """Make an empty memory for a transformers model.

    Parameters
    ----------
    model
        The model that will write and read it.
    layers
        Layers that get a bank; "auto": every layer that sees its whole past.
    keys
        "rotated": as the model made them, which serves true positions. "plain": before the rotary encoding of their
        positions, which serves a fixed distance or none, and so texts longer than a model was trained for.
    rows
        Sequences; "auto": as many as the first batch that is written has, beams included.
    **bank
        Arguments of every bank, such as `key_codec`, `value_codec`, `evict`, `index`. `capacity` may be a list with one
        item per layer, ascending, each a number, None or a list with one number per head: `mnemex.pyramid(30, 256)`.
        With metric "cos", entries are chosen by cosine, and weighed by dot products as local keys are.

    Returns
    -------
    Memory
        Empty, with the fingerprint of the model.

    Raises
    ------
    Unsupported
        The model cannot be attached.
    """
    from mnemex import Bank, Memory

    if keys not in ("rotated", "plain"):
        raise ArgumentError(f"keys={keys!r}: expected 'rotated' or 'plain'")
    given = sorted({"heads", "key_dim", "value_dim"} & bank.keys())
    if given:
        raise ArgumentError(f"{', '.join(given)}: the model decides, leave it out")
    if bank.get("metric", "dot") not in METRICS:
        raise Unsupported(
            f"metric={bank['metric']!r}: attention scores by dot products, and other scores do not fit into its "
            "softmax: leave it out, or choose entries by metric='cos'"
        )
    stack = find_stack(model)
    modules = stack.chosen(layers)
    shapes = bank_shapes(stack, modules)
    if keys == "plain":
        Rotary(stack, modules, 0)  # raises where the position in a key cannot be undone
    auto = isinstance(rows, str) and rows == "auto"
    n_rows = 1 if auto else checks.count("rows", rows)
    room = of_layers(bank.pop("capacity", None), shapes)
    banks = {
        index: Bank(rows=n_rows, capacity=room[index], **shape._asdict(), **bank) for index, shape in shapes.items()
    }
    return Memory(banks, fingerprint=fingerprint(stack, shapes), auto_rows=auto, keys=keys)


def check_heads(stack: Stack, modules: dict[int, nn.Module], merge: PerHead) -> None:
    """Refuse a merge of other heads than the queries have; where the model can only show them later, later."""
    probe = _probe(stack, modules)
    for index, heads in probe.query_heads.items() if probe is not None else ():
        merge.check_heads(heads, f"layer {index} of {stack.name} has")


def _smallest_input(stack: Stack) -> dict[str, Any] | None:
    """One token, or one black image of the size that the config names; None: no such input is known."""
    model, config = stack.model, stack.config
    given: dict[str, Any] = {}
    if "use_cache" in inspect.signature(model.forward).parameters:
        given["use_cache"] = False
    if model.main_input_name == "input_ids":
        return {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=model.device), **given}
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if model.main_input_name != "pixel_values" or size is None or channels is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": torch.zeros(1, channels, height, width, dtype=model.dtype, device=model.device), **given}


def _probe(stack: Stack, modules: dict[int, nn.Module]) -> _Probe | None:
    """Run the smallest input through the model; None where none is known."""
    given = _smallest_input(stack)
    if given is None:
        return None
    probe = _Probe(modules)
    with torch.no_grad(), torch.random.fork_rng(), switched(stack.configs(modules)):
        stack.model(**given, **{FORWARD: probe})
    return probe


def bank_shapes(stack: Stack, modules: dict[int, nn.Module]) -> dict[int, BankShape]:
    """Shapes of keys and values in these layers, from one token or image run through the model."""
    probe = _probe(stack, modules)
    if probe is None:
        raise Unsupported(
            f"{stack.name} reads {stack.model.main_input_name!r}, of which no small example can be made: give a Memory "
            "of banks with the heads and sizes of its layers, "
            "Memory({layer: Bank(heads=..., key_dim=..., value_dim=...)})"
        )
    unreached = sorted(set(modules) - set(probe.shapes))
    if unreached:
        raise Unsupported(
            f"layers {unreached} of {stack.name} are not handed the keyword arguments of their model, which carry "
            "the memory: leave them out with layers=, or use another model"
        )
    return {index: probe.shapes[index] for index in modules}
