"""The same text through the same model, once for each way to attend to its past."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from transformers import DynamicCache

import mnemex
from mnemex.demo.findings import Reading
from mnemex.demo.local_window import LocalWindow
from mnemex.demo.measure import Row, Stream, bits_per_byte, chunk_for, held_bytes, stream, with_recovered
from mnemex.demo.passages import Passages, line_of_each
from mnemex.hf import WindowCache

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from mnemex import Memory
    from mnemex.demo.measure import Advance
    from mnemex.demo.reading import Text


class Progress(Protocol):
    """Where the demo says what it is doing."""

    def start(self, task: str, total: int) -> Advance:
        """Begin a task of `total` steps; what comes back is told how many more are done."""
        ...

    def end(self, result: str) -> None:
        """End the task begun last."""
        ...


class Measured(NamedTuple):
    """The table, the reading that the report shows token by token, and the memory as the last row left it."""

    rows: list[Row]
    reading: Reading
    memory: Memory


class Experiment:
    """One model and one text, read in several ways.

    Parameters
    ----------
    model, text
        What reads, and what is read.
    window, sinks
        Tokens that stay local.
    skip
        Tokens at the beginning that do not count.
    """

    def __init__(
        self, model: PreTrainedModel, text: Text, *, window: int, sinks: int, skip: int, progress: Progress
    ) -> None:
        self.model, self.text = model, text
        self.window, self.sinks, self.skip = window, sinks, skip
        self.chunk = chunk_for(window)
        self.progress = progress

    def run(self, top_k: tuple[int, ...]) -> Measured:
        """Measure the window, the memory read with each of `top_k` and in full, and full attention."""
        self._warm_up()
        n_layers = self.model.config.num_hidden_layers
        local = f"window {self.window:,}"
        plain, _ = self._without_memory(local, LocalWindow(n_layers, window=self.window, sinks=0))
        window, with_window = self._without_memory(
            f"{local} + {self.sinks} sinks", LocalWindow(n_layers, window=self.window, sinks=self.sinks)
        )
        numbers = sorted(set(top_k))
        rows, shown = [plain, window], numbers[0]
        passages = Passages(line_of_each(self.text.pieces), sinks=self.sinks)
        with_memory = with_window
        for k in numbers:
            row, streamed, _ = self._with_memory(f"+ memory, best {k:,}", k, passages if k == shown else None)
            rows.append(row)
            if k == shown:
                with_memory = streamed
        row, _, memory = self._with_memory("+ memory, every entry", None)
        full, _ = self._without_memory("full attention", DynamicCache())
        rows = with_recovered([*rows, row, full], window=window, full=full)
        reading = Reading(self.text, passages, shown, with_memory.nats, with_window.nats)
        return Measured(rows, reading, memory)

    def _warm_up(self) -> None:
        """Let the first row find the model as the others do: kernels chosen, buffers there."""
        stream(self.model, self.text.ids[: 2 * self.chunk], cache=DynamicCache(), chunk=self.chunk)

    def _without_memory(self, name: str, cache: Cache) -> tuple[Row, Stream]:
        streamed = self._stream(name, cache)
        return self._row(name, streamed, local_bytes=held_bytes(cache)), streamed

    def _with_memory(self, name: str, k: int | None, passages: Passages | None = None) -> tuple[Row, Stream, Memory]:
        """Read with a memory; what is retrieved goes into `passages`, outside the clock."""
        memory = mnemex.Memory.for_model(self.model)
        with mnemex.hf.attach(self.model, memory, top_k=k, trace=passages is not None) as attachment:

            def collect(n_tokens: int) -> None:
                if passages is not None:
                    passages.add(n_tokens, attachment.trace or {})

            cache = attachment.cache(window=self.window, sinks=self.sinks)
            assert isinstance(cache, WindowCache)
            streamed = self._stream(name, cache, collect)
        if passages is not None:
            passages.finish()
        row = self._row(name, streamed, local_bytes=cache.nbytes, memory_bytes=memory.nbytes, k=k)
        return row, streamed, memory

    def _stream(self, name: str, cache: Cache, after: Advance | None = None) -> Stream:
        advance = self.progress.start(name, len(self.text.ids))
        streamed = stream(self.model, self.text.ids, cache=cache, chunk=self.chunk, advance=advance, after=after)
        self.progress.end(f"{self._bits(streamed):.4f} bits per byte")
        return streamed

    def _bits(self, streamed: Stream) -> float:
        return bits_per_byte(streamed.nats, self.text, skip=self.skip)

    def _row(self, name: str, streamed: Stream, *, local_bytes: int, memory_bytes: int = 0, k: int | None = 0) -> Row:
        per_token = 1000 * streamed.seconds / len(self.text.ids)
        return Row(name, self._bits(streamed), local_bytes, memory_bytes, per_token, k=k)
