"""`attach`: the one call that gives a transformers model a memory."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import torch
import transformers

from mnemex import Memory
from mnemex._releases import check, release
from mnemex.errors import ArgumentError, DtypeError, Error, Unsupported
from mnemex.hf.attachment import Attachment, Write
from mnemex.hf.fingerprint import fingerprint
from mnemex.hf.function import attached_modules
from mnemex.hf.model_memory import check_heads
from mnemex.hf.rotary import START, Rotary
from mnemex.hf.stack import Layers, Stack, find_stack
from mnemex.parts import Shared
from mnemex.torch import checks
from mnemex.torch.merges import learned
from mnemex.torch.retrieved import check_metric

if TYPE_CHECKING:
    from torch import nn

    from mnemex.parts import Reader
    from mnemex.torch import Bias, Gate

DISTANCE = 512
"""Tokens between a query and plain keys where nothing else was said: the default window of a cache."""

BIASES = (5, 20)
"""The first transformers with which a bias that a model learned for distances (T5) is exact beside a memory."""

_WRITES = ("off", "all", "evicted")


def attach(
    model: nn.Module,
    memory: Memory,
    *,
    top_k: int | Reader | None = 32,
    merge: Literal["joint"] | Bias | Gate = "joint",
    layers: Layers = "auto",
    positions: Literal["auto", "true", "fixed", "none", "start"] | int = "auto",
    write: Write | None = None,
    trace: bool = False,
) -> Attachment:
    """Give a model a memory: its attention reads the best entries beside its local keys.

    No class is replaced and no forward is patched; `detach`, or leaving the `with` block, leaves the model as it was.

    Parameters
    ----------
    model
        A language model, encoder or encoder-decoder of transformers 5.16 to 5.23 that runs "sdpa" or "eager" attention,
        and PyTorch 2.9 to 2.13. Older releases are refused, newer ones warned of.
    memory
        From `Memory.for_model(model)`, or one that was saved.
    top_k
        Entries each query reads, or a reader (`mnemex.Window`); None: every entry, which makes the model exact over the
        whole past.
    merge
        "joint": one softmax over local keys and entries, exact. A `mnemex.torch.Bias` or `Gate` with one number per
        query head is copied into each attached attention module as its submodule `mnemex_merge`: until `detach` it is
        in `model.state_dict()`, and PEFT trains it with `modules_to_save=["mnemex_merge"]`.
    layers
        Layers that read: "auto" takes every layer of the memory, and a memory made with "auto" has every layer that
        can be attached. Layers with a sliding window see only that, with or without a memory, and are left alone; so
        are recurrent ones, whose state lives in the cache and ends with it, or with a text that was ingested.
    positions
        Where entries stand. "true", which "auto" means for keys as the model made them: at the position they were
        written at. A number, for a memory of plain keys: all of them that many tokens before each query, so no
        position passes the length a model was trained for. "fixed", which "auto" means for plain keys: at the distance
        of the window of `cache`, 512 before there is one. "none": at distance 0. "start": all of them at position 0,
        however far a query is from it.
    write
        "off" (also None) writes nothing but what `ingest` reads; "all" stages every token of a forward pass, to be
        committed by `commit`; "evicted" leaves writing to the cache. Calling `cache` changes None to "evicted".
    trace
        Keep what the last forward pass retrieved, in `Attachment.trace`; needs a `top_k`.

    Returns
    -------
    Attachment
        A context manager with `detach`, `commit`, `ingest`, `cache`, `parameters`, `citations`, `next_position` and
        `stats`.

    Raises
    ------
    ShapeError
        A merge of other heads than the model has; in the forward pass, a bank of other heads or sizes than its layer
        attends with.
    Unsupported
        The model, or what was asked of it, has no public hook that would keep it exact; the message says which.
    ArgumentError, DtypeError
        An argument with another value than those above, or of another type.

    Notes
    -----
    Gradients flow to the model's own queries, keys and values, and to the merge; entries are constants. A forward pass
    reads one version of the memory, also when its layers run again under gradient checkpointing.

    What is written is rounded to the type that the memory took first, and float64 to float32: name
    `key_codec="f32", value_codec="f32"` for a memory that begins under autocast and is to keep more.

    Texts packed into one row (`position_ids` that start again, with use_cache=False) read the memory of that row, each
    as if alone; they cannot be written, since one row keeps one text.

    Of an encoder-decoder, the decoder's self attention reads. A bias that a model learned for distances (T5) holds for
    local keys; entries have none.

    `torch.compile(model, fullgraph=True)` gives one graph while the memory grows, for a causal model over "sdpa" that
    reads rotated keys: in eval mode under `torch.no_grad()`, without autocast, a trace, `write="all"` or a cache of
    yours. Otherwise `torch.compile(model)` works with graph breaks. In one graph each layer reads the newest version of
    its bank, so commit between passes. A deep copy of the model has no memory, but keeps hooks that do nothing.

    Examples
    --------
    >>> with mx.hf.attach(model, mx.Memory.for_model(model), top_k=32) as a:
    ...     a.ingest(book)
    ...     model.generate(question, past_key_values=a.cache(window=512))
    """
    per_head, top_k, trace = learned(merge), checks.top_k(top_k), checks.flag("trace", trace)
    if not isinstance(memory, Memory):
        raise DtypeError(f"memory is a {type(memory).__name__}: expected a Memory, as Memory.for_model(model) makes")
    plain = memory.keys == "plain"
    distance = _distance(positions, plain=plain)
    if write is not None and write not in _WRITES:
        raise ArgumentError(f"write={write!r}: expected one of {', '.join(map(repr, _WRITES))}")
    if trace and top_k is None:
        raise ArgumentError("trace=True needs a top_k: with top_k=None every entry is read, and none is chosen")
    if trace and isinstance(top_k, Shared):
        raise Unsupported(
            f"trace=True with top_k={top_k!r}: entries that local tokens look up for each other are read by no query "
            "alone, so none can be named: leave trace out"
        )
    check("torch", torch.__version__)
    check("transformers", transformers.__version__)
    stack = find_stack(model)
    modules = stack.chosen(memory.layers if isinstance(layers, str) and layers == "auto" else layers)
    if release(transformers.__version__) < BIASES and any(
        hasattr(m, "has_relative_attention_bias") for m in modules.values()
    ):
        raise Unsupported(
            f"{stack.name} biases keys by their distance, which transformers {transformers.__version__} hands to "
            f"attention in another form: install {'.'.join(map(str, BIASES))} or later"
        )
    for layer in memory.layers:
        check_metric(memory[layer])
    missing = sorted(set(modules) - set(memory.layers))
    if missing:
        raise ArgumentError(
            f"layers {missing} have no bank in the memory, which has {sorted(memory.layers)}: "
            f"make it with Memory.for_model(model, layers={sorted(modules)})"
        )
    if any(module in attached_modules for module in modules.values()):
        raise Error(f"this {stack.name} has a memory attached already: detach() that one first")
    _check_writer(stack, memory)
    rotary = Rotary(stack, modules, DISTANCE if distance is None else distance) if plain else None
    if per_head is not None:
        check_heads(stack, modules, per_head)
    return Attachment(
        stack, modules, memory, top_k=top_k, write=write, trace=trace, merge=per_head, rotary=rotary, distance=distance
    )


def _distance(positions: object, *, plain: bool) -> int | None:
    """Tell how far before a query entries stand; None: as far as a window reaches, or at their true positions."""
    words: dict[object, int | None] = {"auto": None, "true": None, "fixed": None, "none": 0, "start": START}
    if isinstance(positions, str) and positions in words:
        distance = words[positions]
    else:
        try:
            distance = checks.count("positions", positions, low=0)
        except (ArgumentError, DtypeError) as error:
            raise type(error)(f"{error}, a distance in tokens, or one of {', '.join(map(repr, words))}") from None
    if not plain and not (isinstance(positions, str) and positions in ("auto", "true")):
        raise Unsupported(
            f"positions={positions!r}: this memory keeps keys as the model made them, which serve positions='true' "
            "alone: make one with Memory.for_model(model, keys='plain')"
        )
    if plain and positions == "true":
        raise Unsupported(
            "positions='true': this memory keeps plain keys, which serve a fixed distance or none: make one with "
            "Memory.for_model(model, keys='rotated')"
        )
    return distance


def _check_writer(stack: Stack, memory: Memory) -> None:
    """Compare the model with the one that the memory was made for."""
    written_by = memory.fingerprint
    if written_by is None:
        return
    own = fingerprint(stack, memory.layers)
    if own == written_by:
        return
    if own.partition("/")[0] != written_by.partition("/")[0]:
        raise ArgumentError(
            f"the memory was made for another architecture than this {stack.name} (heads, sizes, positions or "
            "layers differ): make one with Memory.for_model(model)"
        )
    if len(memory):
        warnings.warn(
            f"the memory was written with other weights than this {stack.name} has: its keys may not fit the queries",
            stacklevel=3,
        )
