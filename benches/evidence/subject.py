"""The model and the texts that claims are tried on, and how a text is read through a memory.

SmolLM2-135M-Instruct in float32 reads modules of the running Python's standard library, none of which was chosen by
what came out. All results are bits per byte of the tokens after `skip`, so that every way to read has a past by then.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mnemex
from benches.evidence.claim import Tried
from mnemex.demo.local_window import LocalWindow
from mnemex.demo.measure import bits_per_byte, stream
from mnemex.demo.pretrained import load
from mnemex.demo.reading import read, tokenize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from mnemex.demo.reading import Text

MODULES = ("argparse", "tarfile", "typing", "_pydecimal", "doctest", "mailbox")
"""Long modules with names that return, as held out by notes on a small model of the same library."""

SINKS = 4
CHUNK = 64


@dataclass(frozen=True)
class Subject:
    """What is read, and how much of it.

    Attributes
    ----------
    quick
        Whether this only shows that everything runs: little text, no meaning.
    """

    quick: bool
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        return 640 if self.quick else 4096

    @property
    def skip(self) -> int:
        return 384 if self.quick else 1024

    @cached_property
    def texts(self) -> list[Text]:
        names = MODULES[:2] if self.quick else MODULES
        return [self.text(name) for name in names]

    def text(self, module: str) -> Text:
        """The first tokens of a module of the standard library."""
        path = Path(inspect.getfile(importlib.import_module(module)))
        return tokenize(read(path, n_tokens=self.n_tokens), self.tokenizer, n_tokens=self.n_tokens, least=self.n_tokens)

    def entries_beyond(self, window: int) -> int:
        """How many entries a memory of everything that left a window would hold at the end of a text."""
        return self.n_tokens - SINKS - (window - 1)

    def without_memory(self, group: str, window: int, *, name: str = "no memory") -> Tried:
        """Read with a window and its sinks alone."""
        n_layers = self.model.config.num_hidden_layers
        results, seconds = [], 0.0
        for text in self.texts:
            cache = LocalWindow(n_layers, window=window, sinks=SINKS)
            found = stream(self.model, text.ids, cache=cache, chunk=CHUNK)
            results.append(bits_per_byte(found.nats, text, skip=self.skip))
            seconds += found.seconds
        return Tried(group=group, name=name, results=tuple(results), memory_bytes=0, seconds=seconds)

    def with_memory(
        self,
        group: str,
        name: str,
        window: int,
        *,
        memory: dict[str, Any] | None = None,
        attach: dict[str, Any] | None = None,
    ) -> Tried:
        """Read with a window whose tokens go to a memory when they leave it.

        Parameters
        ----------
        memory, attach
            Arguments of `Memory.for_model` and `mnemex.hf.attach`.
        """
        results, seconds, n_bytes = [], 0.0, []
        for text in self.texts:
            bank = mnemex.Memory.for_model(self.model, **(memory or {}))
            with mnemex.hf.attach(self.model, bank, **(attach or {})) as attachment:
                cache = attachment.cache(window=window, sinks=SINKS)
                found = stream(self.model, text.ids, cache=cache, chunk=CHUNK)
            results.append(bits_per_byte(found.nats, text, skip=self.skip))
            seconds += found.seconds
            n_bytes.append(bank.nbytes)
        return Tried(
            group=group, name=name, results=tuple(results), memory_bytes=sum(n_bytes) // len(n_bytes), seconds=seconds
        )


def subject(*, quick: bool) -> Subject:
    """Load the model."""
    pretrained = load(None, dtype="float32")
    return Subject(quick, pretrained.model, pretrained.tokenizer)


def widest(tried: Iterable[Tried]) -> int:
    """The most bytes that any of them held."""
    return max(each.memory_bytes for each in tried)
