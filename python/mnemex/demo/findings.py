"""What a run found: everything the report and the last lines on the screen are written from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mnemex.demo.measure import Row
    from mnemex.demo.passages import Passages
    from mnemex.demo.reading import Text
    from mnemex.demo.spread import Spread


@dataclass(frozen=True)
class Reading:
    """One text as the model read it, with a memory and with the window alone.

    Attributes
    ----------
    text, passages, spread
        The text, what its tokens retrieved with `k` entries per query and head, and where that attention went.
    with_memory, with_window
        Loss of each token in nats `[n]`, NaN for the first.
    """

    text: Text
    passages: Passages
    spread: Spread
    k: int
    with_memory: NDArray[np.float64]
    with_window: NDArray[np.float64]


class AtWindow(NamedTuple):
    """Bits per byte with a window of so many tokens and the sinks: alone, and with a memory of the rest."""

    window: int
    alone: float
    with_memory: float


@dataclass(frozen=True)
class Windows:
    """What a memory is worth at several windows, on the first `n_tokens` tokens; `full` is full attention's loss."""

    n_tokens: int
    points: list[AtWindow]
    full: float


@dataclass(frozen=True)
class Written:
    """How the model went on: the end of the prompt, and what it wrote with each cache, token by token."""

    prompt_end: str
    n_prompt: int
    full: list[str]
    memory: list[str]
    n_equal: int


@dataclass(frozen=True)
class Reopened:
    """A saved memory: its folder's bytes, what each process answered, and the seconds it took to save."""

    n_bytes: int
    here: str
    elsewhere: str
    save_seconds: float


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    Attributes
    ----------
    model
        Name of the model.
    rows
        The table, in order; `baseline` (the window and its sinks) and `full` attention are two of them.
    windows
        The same text, at other windows; None if they were not wanted.
    n_entries
        Entries in the memory at the end.
    skip, chunk, whole_chunk, window, sinks
        Tokens not measured, tokens per forward pass, the same where everything is seen, and what is local.
    facts
        Machine, versions and the like, shown as they are.
    """

    model: str
    rows: list[Row]
    baseline: Row
    full: Row
    windows: Windows | None
    n_entries: int
    reading: Reading
    written: Written
    reopened: Reopened
    window: int
    sinks: int
    chunk: int
    whole_chunk: int
    skip: int
    facts: Mapping[str, str]
