"""What claims are tried on: a model, the texts it reads, and how it reads them through a memory.

SmolLM2-135M-Instruct in float32, and a small model of bytes that is trained here, read modules of the running Python's
standard library. None was chosen by what came out. All results are bits per byte of what comes after `skip`, so that
every way to read has a past by then.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mnemex
from benches.evidence import small_model
from benches.evidence.claim import Tried
from mnemex.demo.local_window import LocalWindow
from mnemex.demo.measure import bits_per_byte, stream
from mnemex.demo.pretrained import load
from mnemex.demo.reading import Text, read, tokenize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MODULES = ("argparse", "tarfile", "typing", "_pydecimal")
"""Long modules with names that return; the small model is not trained on them."""

SINKS = 4
CHUNK = 64


@dataclass(frozen=True)
class Subject:
    """A model and its texts.

    Attributes
    ----------
    quick
        Whether this only shows that everything runs: little text, no meaning.
    texts
        What is read, all of one length.
    skip
        Tokens at the beginning of each that do not count.
    sinks
        First tokens that stay local.
    """

    quick: bool
    model: PreTrainedModel
    texts: list[Text]
    skip: int
    sinks: int
    tokenizer: PreTrainedTokenizerFast | None = None

    def encoded(self, text: str) -> NDArray[np.int64]:
        """Tokens of a text, for a model that has a tokenizer."""
        assert self.tokenizer is not None
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)

    def entries_beyond(self, window: int) -> int:
        """How many entries a memory of everything that left a window would hold at the end of a text."""
        return len(self.texts[0].ids) - self.sinks - (window - 1)

    def without_memory(self, group: str, window: int, *, name: str = "no memory") -> Tried:
        """Read with a window and its sinks alone."""
        n_layers = self.model.config.num_hidden_layers
        results, seconds = [], 0.0
        for text in self.texts:
            cache = LocalWindow(n_layers, window=window, sinks=self.sinks)
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
                cache = attachment.cache(window=window, sinks=self.sinks)
                found = stream(self.model, text.ids, cache=cache, chunk=CHUNK)
            results.append(bits_per_byte(found.nats, text, skip=self.skip))
            seconds += found.seconds
            n_bytes.append(bank.nbytes)
        return Tried(
            group=group, name=name, results=tuple(results), memory_bytes=sum(n_bytes) // len(n_bytes), seconds=seconds
        )


def pretrained(*, quick: bool) -> Subject:
    """SmolLM2-135M-Instruct and the first 4,096 tokens of each module."""
    n, names = (384, MODULES[:1]) if quick else (4096, MODULES)
    found = load(None, dtype="float32")
    texts = [tokenize(read(_file(name), n_tokens=n), found.tokenizer, n_tokens=n, least=n) for name in names]
    return Subject(quick, found.model, texts, skip=256 if quick else 1024, sinks=SINKS, tokenizer=found.tokenizer)


def small(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Subject:
    """Give the model of bytes, trained now unless `folder` has it, and the first 16 KiB of each module."""
    n, names = (512, MODULES[:1]) if quick else (16384, MODULES)
    model = small_model.trained(small_model.Budget(1 if quick else small_model.STEPS), folder, say)
    return Subject(quick, model, [_bytes(name, n) for name in names], skip=384 if quick else 4096, sinks=0)


def _file(module: str) -> Path:
    return Path(inspect.getfile(importlib.import_module(module)))


def _bytes(module: str, n: int) -> Text:
    data = _file(module).read_bytes()[:n]
    ids = small_model.tokens(data).numpy()
    return Text(module, ids, [chr(byte) for byte in data], np.ones(len(ids), np.int64))
