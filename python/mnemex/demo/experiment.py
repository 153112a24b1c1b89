"""The same text through the same model, once for each way to attend to its past."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from transformers import DynamicCache

import mnemex
from mnemex.demo.findings import AtWindow, Reading, Windows
from mnemex.demo.local_window import LocalWindow
from mnemex.demo.measure import Row, Stream, bits_per_byte, chunk_for, held_bytes, stream, with_recovered
from mnemex.demo.passages import Passages, line_of_each
from mnemex.demo.spread import Spread
from mnemex.hf import WindowCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from transformers import Cache, PreTrainedModel

    from mnemex import Memory
    from mnemex.demo.measure import Advance
    from mnemex.demo.passages import Trace
    from mnemex.demo.reading import Text


class Progress(Protocol):
    """Where the demo says what it is doing."""

    def start(self, task: str, total: int) -> Advance:
        """Begin a task of `total` steps; what comes back is told how many more are done."""
        ...

    def end(self, result: str) -> None:
        """End the task begun last."""
        ...


WHOLE_CHUNKS = 4
"""Chunks that are fed together where every token sees its whole past, which does not depend on them: with four, full
attention takes two thirds of the time."""
OTHER_WINDOWS = (0.25, 2.0)
"""Windows that are tried beside the given one, as multiples of it."""


class Measured(NamedTuple):
    """The table, other windows if wanted, the reading that is shown, and the memory as the table's last row left it."""

    rows: list[Row]
    windows: Windows | None
    reading: Reading
    memory: Memory


class Watcher(Protocol):
    """Collects what was retrieved, pass by pass."""

    def add(self, n_tokens: int, layers: Mapping[int, Trace]) -> None:
        """Take in the next forward pass, of `n_tokens` tokens."""
        ...


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
    chunk
        Tokens per forward pass; None: as suits the window.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        text: Text,
        *,
        window: int,
        sinks: int,
        skip: int,
        progress: Progress,
        chunk: int | None = None,
    ) -> None:
        self.model, self.text = model, text
        self.window, self.sinks, self.skip = window, sinks, skip
        self.chunk = chunk_for(window) if chunk is None else chunk
        self.whole_chunk = WHOLE_CHUNKS * self.chunk
        self.progress = progress

    def run(self, top_k: tuple[int, ...], *, other_windows: bool) -> Measured:
        """Measure the window, the memory read with each of `top_k` and in full, full attention; then other windows."""
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
        spread = Spread(len(self.text.ids), window=self.window, sinks=self.sinks, skip=self.skip)
        with_memory = with_window
        for k in numbers:
            watchers = (passages, spread) if k == shown else ()
            row, streamed, _ = self._with_memory(f"+ memory, best {k:,}", k, watchers)
            rows.append(row)
            if k == shown:
                with_memory = streamed
        row, _, memory = self._with_memory("+ memory, every entry", None, chunk=self.whole_chunk)
        full, with_all = self._without_memory("full attention", DynamicCache(), chunk=self.whole_chunk)
        rows = with_recovered([*rows, row, full], window=window, full=full)
        passages.finish()
        reading = Reading(self.text, passages, spread, shown, with_memory.nats, with_window.nats)
        windows = self._at_other_windows(reading, with_all) if other_windows else None
        return Measured(rows, windows, reading, memory)

    def _at_other_windows(self, reading: Reading, with_all: Stream) -> Windows:
        """Measure other windows on the first third of the text, which the passes made already have read alike."""
        n_tokens = max((len(self.text.ids) + 2) // 3, min(len(self.text.ids), self.skip + self.window))
        third = self.text.beginning(n_tokens)

        def bits(nats: NDArray[np.float64]) -> float:
            return bits_per_byte(nats[:n_tokens], third, skip=self.skip)

        points = [AtWindow(self.window, bits(reading.with_window), bits(reading.with_memory))]
        for window in sorted({max(1, int(share * self.window)) for share in OTHER_WINDOWS} - {self.window}):
            other = Experiment(
                self.model, third, window=window, sinks=self.sinks, skip=self.skip, progress=self.progress,
                chunk=self.chunk,
            )  # fmt: skip
            points.append(other.at_its_window(reading.k))
        return Windows(n_tokens, sorted(points), bits(with_all.nats))

    def at_its_window(self, k: int) -> AtWindow:
        """Measure the window with its sinks alone, and with a memory of which the best `k` are read."""
        local = f"window {self.window:,}"
        alone = LocalWindow(self.model.config.num_hidden_layers, window=self.window, sinks=self.sinks)
        without, _ = self._without_memory(f"{local} + {self.sinks} sinks", alone)
        row, *_ = self._with_memory(f"{local} + memory, best {k:,}", k)
        return AtWindow(self.window, without.bits_per_byte, row.bits_per_byte)

    def _warm_up(self) -> None:
        """Let the first row find the model as the others do: kernels chosen, buffers there."""
        stream(self.model, self.text.ids[: 2 * self.chunk], cache=DynamicCache(), chunk=self.chunk)

    def _without_memory(self, name: str, cache: Cache, *, chunk: int | None = None) -> tuple[Row, Stream]:
        streamed = self._stream(name, cache, chunk)
        return self._row(name, streamed, local_bytes=held_bytes(cache)), streamed

    def _with_memory(
        self, name: str, k: int | None, watchers: tuple[Watcher, ...] = (), *, chunk: int | None = None
    ) -> tuple[Row, Stream, Memory]:
        """Read with a memory; `watchers` are told what is retrieved, outside the clock."""
        memory = mnemex.Memory.for_model(self.model)
        with mnemex.hf.attach(self.model, memory, top_k=k, trace=bool(watchers)) as attachment:

            def collect(n_tokens: int) -> None:
                for each in watchers:
                    each.add(n_tokens, attachment.trace or {})

            cache = attachment.cache(window=self.window, sinks=self.sinks)
            assert isinstance(cache, WindowCache)
            streamed = self._stream(name, cache, chunk, collect)
        row = self._row(name, streamed, local_bytes=cache.nbytes, memory_bytes=memory.nbytes, k=k)
        return row, streamed, memory

    def _stream(self, name: str, cache: Cache, chunk: int | None, after: Advance | None = None) -> Stream:
        advance = self.progress.start(name, len(self.text.ids))
        chunk = self.chunk if chunk is None else chunk
        streamed = stream(self.model, self.text.ids, cache=cache, chunk=chunk, advance=advance, after=after)
        self.progress.end(f"{self._bits(streamed):.4f} bits per byte")
        return streamed

    def _bits(self, streamed: Stream) -> float:
        return bits_per_byte(streamed.nats, self.text, skip=self.skip)

    def _row(self, name: str, streamed: Stream, *, local_bytes: int, memory_bytes: int = 0, k: int | None = 0) -> Row:
        per_token = 1000 * streamed.seconds / len(self.text.ids)
        return Row(name, self._bits(streamed), local_bytes, memory_bytes, per_token, k=k)
