"""Whether whole blocks, read at one distance, find a sentence in a text longer than the model was trained for."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np
from transformers import DynamicCache

import mnemex as mx
from benches.evidence.claim import Claim, Tried
from benches.evidence.subject import CHUNK
from mnemex.demo.local_window import LocalWindow
from mnemex.demo.measure import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from benches.evidence.subject import Subject
    from mnemex.demo.measure import Stream

WINDOW, SIZE, BLOCKS = 512, 64, 8
N_TOKENS, DEPTHS = 10_240, (0.1, 0.3, 0.5, 0.7)
WHOLE_CHUNK = 512


def _needle(subject: Subject, depth: float, n: int) -> tuple[NDArray[np.int64], int]:
    """Make a text of n tokens with a number in it that is asked for at the end, and how many tokens the answer has."""
    number = random.Random(f"passkey {depth}").randrange(10_000, 100_000)
    told = subject.encoded(f"\n\nThe pass key is {number}. Remember it. {number} is the pass key.\n\n")
    asked = subject.encoded("\n\nWhat is the pass key? The pass key is")
    answer = subject.encoded(f" {number}")
    filler = np.concatenate([text.ids for text in subject.texts])
    room = n - len(told) - len(asked) - len(answer)
    at = int(depth * room)
    return np.concatenate([filler[:at], told, filler[at:room], asked, answer]), len(answer)


def _try(subject: Subject) -> Sequence[Tried]:
    n, window, depths = (420, 128, DEPTHS[:1]) if subject.quick else (N_TOKENS, WINDOW, DEPTHS)
    needles = [_needle(subject, depth, n) for depth in depths]

    def tried(name: str, read: Callable[[NDArray[np.int64]], tuple[Stream, int]]) -> Tried:
        results, seconds, n_bytes = [], 0.0, []
        for ids, n_answer in needles:
            found, held = read(ids)
            n_bytes.append(held)
            results.append(float(found.nats[-n_answer:].sum() / math.log(2)))
            seconds += found.seconds
        return Tried(
            group="", name=name, results=tuple(results), memory_bytes=sum(n_bytes) // len(n_bytes), seconds=seconds
        )

    def local(ids: NDArray[np.int64]) -> tuple[Stream, int]:
        cache = LocalWindow(subject.model.config.num_hidden_layers, window=window, sinks=subject.sinks)
        return stream(subject.model, ids, cache=cache, chunk=CHUNK), 0

    def full(ids: NDArray[np.int64]) -> tuple[Stream, int]:
        return stream(subject.model, ids, cache=DynamicCache(), chunk=WHOLE_CHUNK), 0

    def remembered(
        ids: NDArray[np.int64], write: mx.parts.Append | mx.Pages, reader: int | mx.Blocks
    ) -> tuple[Stream, int]:
        memory = mx.Memory.for_model(subject.model, keys="plain", write=write)
        with mx.hf.attach(subject.model, memory, top_k=reader) as attachment:
            cache = attachment.cache(window=window, sinks=subject.sinks)
            return stream(subject.model, ids, cache=cache, chunk=CHUNK), memory.nbytes

    return [
        tried("window", local),
        tried("full attention", full),
        tried(f"best {BLOCKS * SIZE} entries", lambda ids: remembered(ids, mx.Append(), BLOCKS * SIZE)),
        tried(f"best {BLOCKS} blocks", lambda ids: remembered(ids, mx.Pages(size=SIZE), mx.Blocks(BLOCKS))),
    ]


CLAIM = Claim(
    name="A pass key beyond the trained length",
    source="InfLLM, Xiao et al. 2024, arXiv 2402.04617",
    says="Blocks of the past, read whole at one distance, keep a sentence within reach of a model that was trained for "
    "fewer tokens; the window alone loses it, and full attention goes beyond what the model knows.",
    setting=f"{N_TOKENS:,} tokens of the modules with a number told at {', '.join(f'{d:.0%}' for d in DEPTHS)} of "
    f"the text and asked for at its end; the model was trained with 8,192. Window {WINDOW}, {BLOCKS} blocks of {SIZE} "
    "tokens for each query, all layers, keys at the distance of the window. The result is what the five digits cost; "
    "guessing them costs 16.6.",
    unit="bits for the number",
    try_it=_try,
    pairs=((f"best {BLOCKS} blocks", "window"), (f"best {BLOCKS} blocks", "full attention")),
)
