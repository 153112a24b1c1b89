"""A memory on a model: the object `attach` returns, and what it does around each forward pass."""

from __future__ import annotations

import copy
import inspect
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from mnemex.errors import ArgumentError, Error, ShapeError, Unsupported
from mnemex.hf.cache import WindowCache, self_attention_cache, writers
from mnemex.hf.citations import Citation, Source, cite
from mnemex.hf.compiled import CompiledForward
from mnemex.hf.forward import ModelForward
from mnemex.hf.function import FORWARD, MERGE, NAMES, attached_modules, restore, switch
from mnemex.hf.ingest import read_text
from mnemex.hf.recurrent import Recurrence
from mnemex.hf.rotary import Rotary, note_angles
from mnemex.hf.staging import Counts, next_position
from mnemex.torch import checks
from mnemex.torch.merges import JOINT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mnemex import Bank, Memory, Receipt, Snapshot
    from mnemex.hf.stack import Stack
    from mnemex.hf.window import Ints
    from mnemex.parts import Reader
    from mnemex.torch.joined import Trace
    from mnemex.torch.merges import PerHead

Write = Literal["off", "all", "evicted"]


@dataclass(frozen=True)
class AttachmentStats:
    """What an attachment has done.

    Attributes
    ----------
    layers
        Layers that read the memory.
    entries, nbytes
        Entries and bytes of the memory.
    written
        Tokens staged through this attachment, over all rows.
    nonfinite
        Tokens left out because a key or a value of theirs was NaN, infinite, or more than the bank can hold.
    next_position
        Position at which a later prompt starts.
    """

    layers: tuple[int, ...]
    entries: int
    nbytes: int
    written: int
    nonfinite: int
    next_position: int


class Attachment:
    """A memory attached to a model; made by `attach`.

    Usable as a context manager. `detach` leaves the model as it was, to the bit.

    Attributes
    ----------
    memory
        The memory that is read, and written where `write` says so.
    top_k
        Entries each query reads, or a reader (`mnemex.Window`); None: every entry.
    modules
        The attention modules that read, by layer.
    staged
        Ids of the tokens that the last forward pass wrote, int64 `[rows, T]`; None: it wrote none.
    trace
        What each layer retrieved in the last forward pass, by layer; None unless asked for. A layer that found its
        bank empty is not in it.
    """

    def __init__(
        self,
        stack: Stack,
        modules: dict[int, nn.Module],
        memory: Memory,
        *,
        top_k: int | Reader | None,
        write: Write | None,
        trace: bool,
        merge: PerHead | None = None,
        rotary: Rotary | None = None,
        distance: int | None = None,
    ) -> None:
        self.stack, self.modules, self.memory, self.top_k = stack, modules, memory, top_k
        self.indices = {module: index for index, module in modules.items()}
        self.counts = Counts()
        self.staged: Ints | None = None
        self._sources: list[Source] = []
        self.stages_tokens = write == "all"
        self.attached = True
        self.trace: dict[int, Trace] | None = {} if trace else None
        self._write = write
        self._limit: int | None = getattr(stack.config, "max_position_embeddings", None)
        self._configs = stack.configs(modules)
        self.rotary, self._distance, self.recurrence = rotary, distance, Recurrence(stack)
        self.merge = JOINT if merge is None else merge.merge
        switch(self._configs)
        for module in self.indices:
            attached_modules[module] = stack.name
            if merge is not None:
                module.add_module(MERGE, copy.deepcopy(merge).to(next(module.parameters()).device))
        self._hooks = [
            hook
            for model in stack.owners
            for hook in (
                model.register_forward_pre_hook(self._before, with_kwargs=True),
                model.register_forward_hook(self._after, with_kwargs=True, always_call=True),
            )
        ]
        if rotary is not None:
            self._hooks += [m.register_forward_pre_hook(note_angles, with_kwargs=True) for m in self.indices]
        self._names = {model: list(inspect.signature(model.forward).parameters) for model in stack.owners}

    def __repr__(self) -> str:
        state = "" if self.attached else ", detached"
        return f"Attachment({self.stack.name}, layers={list(self.modules)}, top_k={self.top_k}{state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        # A copied model carries copies of the hooks for good; they do nothing for modules that are not attached.
        return self

    def __reduce__(self) -> NoReturn:
        raise Error(f"an attached {self.stack.name} cannot be pickled: detach() first, and save the memory by itself")

    def detach(self) -> None:
        """Leave the model as it was before; a second call does nothing."""
        if not self.attached:
            return
        self.attached = False
        for hook in self._hooks:
            hook.remove()
        for module in self.indices:
            del attached_modules[module]
            if hasattr(module, MERGE):
                delattr(module, MERGE)
        restore(self._configs)

    def commit(self) -> list[Receipt]:
        """Make what was staged visible to later forward passes; one receipt per bank."""
        return self.memory.commit()

    @property
    def next_position(self) -> int:
        """Position at which a prompt continues what is in the memory: one after the last entry, 0 when empty.

        Plain keys have no position, so a prompt beside them starts at 0. RoBERTa and its kin count from the number of
        their pad token on, plus 1.
        """
        return 0 if self.rotary is not None else max(next_position(self.memory), self.stack.first_position)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Give the learned parameters of the merge, layer by layer; joint attention has none."""
        for module in self.modules.values():
            merge = getattr(module, MERGE, None)
            if merge is not None:
                yield from merge.parameters()

    def stats(self) -> AttachmentStats:
        """Tell what this attachment has done, and what its memory holds."""
        return AttachmentStats(
            layers=tuple(self.modules),
            entries=len(self.memory),
            nbytes=self.memory.nbytes,
            written=self.counts.written,
            nonfinite=self.counts.nonfinite,
            next_position=self.next_position,
        )

    def cache(self, window: int = 512, sinks: int = 4) -> WindowCache | EncoderDecoderCache:
        """Make a cache whose window is local and whose rest is in the memory, for `generate` and forward passes.

        Parameters
        ----------
        window
            Tokens each query attends to locally, itself included; a longer chunk attends to all of itself.
        sinks
            First tokens of each row (pads aside) that stay local for good.

        Returns
        -------
        WindowCache or EncoderDecoderCache
            Give it as `past_key_values`; for an encoder-decoder it stands beside a cache for the attention to the
            encoder. It commits at the end of each forward pass, and continues the positions of
            what the memory holds already. The newest cache of a memory is the one that works, whichever attachment
            made it.

        Raises
        ------
        ArgumentError, DtypeError
            The attachment was made with another `write` than "evicted", or `window` or `sinks` is no such number.

        Notes
        -----
        `generate(guidance_scale=...)` runs its second, unconditional prompt without this cache, so that prompt reads
        the memory, what the first prompt put there included. Leave guidance off beside a memory.
        """
        if self._write not in (None, "evicted"):
            raise ArgumentError(f"write={self._write!r}: a cache writes what it evicts; attach with write='evicted'")
        if not self.attached:
            raise Error("the memory is detached from the model: attach it again")
        cache = WindowCache(self, window=window, sinks=sinks)
        if self.rotary is not None and self._distance is None:
            self.rotary.at(window)
        self._write = "evicted"
        writers[self.memory] = ref(cache)
        if self.stack.kind == "encoder-decoder":
            return EncoderDecoderCache(cache, DynamicCache(config=self.stack.config))
        return cache

    @torch.no_grad()
    def ingest(
        self, ids: Tensor, attention_mask: Tensor | None = None, *, chunk: int = 512, name: str | int | None = None
    ) -> Ints:
        """Read a text into the memory: run it through the model chunk by chunk, and commit after each.

        Every chunk attends to itself and to the memory, at positions that continue those in the memory. An encoder
        reads each chunk as a passage of its own, whose positions start at 0. When a chunk fails or is interrupted,
        what is staged is dropped and the chunks before it stay.

        Parameters
        ----------
        ids
            Token ids `[rows, T]`.
        attention_mask
            0 for pads, which are not written, `[rows, T]`.
        chunk
            Tokens per forward pass.
        name
            What `citations` calls this text; None: its number among the texts this attachment has read.

        Returns
        -------
        ids
            int64 `[rows, T]`: the entry that each token became, -1 for pads and tokens that are not finite.
        """
        if not self.attached:
            raise Error("the memory is detached from the model: attach it again")
        entries = read_text(self, ids, attention_mask, chunk)
        self._sources.append(Source(len(self._sources) if name is None else name, entries))
        return entries

    def citations(self, n: int = 5, *, row: int = 0) -> list[Citation]:
        """List the stretches of text that the last forward pass read most from, heaviest first.

        Parameters
        ----------
        n
            Stretches at most.
        row
            Of the batch.

        Raises
        ------
        Error
            The attachment was made without `trace=True`.
        RowError, ArgumentError, DtypeError
            A row that the batch did not have, or an `n` or `row` that is no whole number.
        """
        n, row = checks.count("n", n), checks.count("row", row, low=0)
        if self.trace is None:
            raise Error("nothing was traced: attach with trace=True and a top_k, then run the model")
        return cite(self.trace, self._sources, n=n, row=row)

    def need_positions(self) -> None:
        """Raise where the model cannot be told at which positions its tokens stand."""
        if "position_ids" not in self._names[self.stack.model]:
            raise Unsupported(
                f"{self.stack.name} takes no position_ids, so it cannot continue after what is in the memory: "
                "read each text in one chunk, into an empty memory"
            )

    def take_staged(self) -> Ints | None:
        """Give the ids that forward passes have staged since the last call, of the last of them."""
        staged, self.staged = self.staged, None
        return staged

    @contextmanager
    def writing(self, cache: WindowCache | None) -> Iterator[None]:
        """Write what forward passes see, through `cache` or with none; what stays staged is dropped on failure."""
        outer = writers.pop(self.memory, None)
        if cache is not None:
            writers[self.memory] = ref(cache)
        stages, self.stages_tokens = self.stages_tokens, cache is None
        try:
            yield
        except BaseException:
            self.memory.rollback()
            raise
        finally:
            self.stages_tokens = stages
            writers.pop(self.memory, None)
            if outer is not None:
                writers[self.memory] = outer

    def take_rows(self, memory: Memory, batch: int) -> None:
        """Give the memory as many rows as the batch has, where it may take them."""
        if batch == 0:
            raise ShapeError("the batch has 0 rows: there is nothing to write")
        if memory.rows == batch:
            return
        if memory.auto_rows and (memory.rows == 1 or not len(memory)):
            memory.reorder(np.zeros(batch, np.int64))
            return
        raise self.other_rows(memory, batch)

    @staticmethod
    def other_rows(memory: Memory | Bank | Snapshot, batch: int) -> ShapeError:
        """Say that the memory has other rows than the batch, and what to do."""
        what = f"the batch has {batch} rows, the memory has {memory.rows}"
        if memory.rows and batch % memory.rows == 0:
            return ShapeError(f"{what}: memory.fork({batch // memory.rows}) gives each beam of a row a copy of it")
        return ShapeError(
            f"{what}: choose among its rows with memory.reorder, or make one with Memory.for_model(model, rows={batch})"
        )

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if FORWARD in kwargs or module not in self._names:
            return None
        switched_off = sorted({str(c._attn_implementation) for c in self._configs} - set(NAMES.values()))
        if switched_off:
            raise Error(
                f"the attention of this {self.stack.name} was set to {switched_off[0]!r} while a memory was attached, "
                "so the memory would not be read: detach() first, set it, and attach again"
            )
        # Of one length: PyTorch 2.9 compiles no other zip.
        inputs = {**dict(zip(self._names[module][: len(args)], args, strict=True)), **kwargs}
        names = {str(c._attn_implementation) for c in self._configs}
        if torch.compiler.is_compiling() and CompiledForward.serves(self, names, inputs):
            return args, {**kwargs, FORWARD: CompiledForward(self)}
        past = self_attention_cache(inputs.get("past_key_values"))
        if isinstance(past, WindowCache):
            shifted = self._shifted(past, inputs)
            if shifted is not None:
                inputs["position_ids"] = shifted
                first = self._names[module][: len(args)]
                args = tuple(inputs[name] for name in first)
                kwargs = {name: value for name, value in inputs.items() if name not in first}
        forward = ModelForward(self, module, inputs)
        self._warn_beyond_limit(forward)
        return args, {**kwargs, FORWARD: forward}

    def _after(self, module: nn.Module, _: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        forward = kwargs.get(FORWARD)
        if isinstance(forward, ModelForward) and forward.owner is module and forward.open:
            # Called without an output when the forward pass raised.
            forward.close(failed=output is None)

    def _shifted(self, cache: WindowCache, inputs: dict[str, Any]) -> Tensor | None:
        """Positions that continue those in the memory, for a cache that was begun with entries in it; else None.

        `generate` counts positions from 0 for each cache. A caller who gives positions beyond the memory's means them.
        """
        given: Tensor | None = inputs.get("position_ids")
        if cache.shift is None:
            base = 0 if self.rotary is not None else next_position(self.memory)
            cache.shift = base if given is None or not given.numel() or int(given.min()) < base else 0
        if cache.shift == 0:
            return None
        self.need_positions()
        if given is not None:
            return given + cache.shift
        tokens = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        start = cache.shift + cache.get_seq_length()
        return torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]

    def _warn_beyond_limit(self, forward: ModelForward) -> None:
        if self.rotary is None and self._limit is not None and forward.last_position >= self._limit:
            warnings.warn(
                f"position {forward.last_position} is past the {self._limit} that {self.stack.name} was trained on, "
                "where answers degrade with true positions; a memory made with keys='plain' serves longer texts",
                stacklevel=6,
            )
            self._limit = None
