"""The demo from beginning to end: read a text with and without a memory, save it, go on with the text, report."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import transformers
from transformers import DynamicCache

import mnemex
from mnemex.demo.continuation import go_on, n_equal
from mnemex.demo.experiment import Experiment
from mnemex.demo.findings import Reopened, Report, Written
from mnemex.demo.pretrained import DType, Pretrained, load
from mnemex.demo.reading import Text, read, tokenize
from mnemex.demo.reopen import digest, digest_elsewhere
from mnemex.demo.report import render
from mnemex.doctor import processor
from mnemex.errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np

    from mnemex import Memory
    from mnemex.demo.experiment import Progress

LEAST_MEASURED = 64
N_WRITTEN = 64
PROMPT_WINDOWS = 2
SHOWN_LINES, SHOWN_CHARACTERS = 12, 800
"""Of the prompt's end, in the report."""


@dataclass(frozen=True)
class Settings:
    """What to run.

    Parameters
    ----------
    model
        None for SmolLM2-135M-Instruct; else a hub name, a folder, or a GGUF file.
    text
        None for `inspect.py` of the running Python; else a UTF-8 file.
    window, sinks
        What stays local: the last tokens, and the first.
    top_k
        Numbers of entries to read per query and head. The report shows the passages of the smallest.
    n_tokens
        How much of the text to read.
    out
        Folder for `report.html` and the saved memory, `demo-memory`.
    dtype
        "auto": bfloat16 where the processor multiplies it faster than float32.
    other_windows
        Whether to measure a shorter and a longer window too, in four more passes over a third of the text.

    Raises
    ------
    ArgumentError
        A number below 1, no `top_k`, or an `out` that is a file.
    """

    model: str | None = None
    text: Path | None = None
    window: int = 512
    sinks: int = 4
    top_k: tuple[int, ...] = (8, 32)
    n_tokens: int = 8192
    out: Path = Path()
    dtype: DType = "auto"
    other_windows: bool = False

    def __post_init__(self) -> None:
        for name, number in (("window", self.window), ("tokens", self.n_tokens), *(("top_k", k) for k in self.top_k)):
            if number < 1:
                raise ArgumentError(f"{name} is {number}: expected at least 1")
        if not self.top_k:
            raise ArgumentError("top_k is empty: expected at least one number of entries to read")
        if self.out.exists() and not self.out.is_dir():
            raise ArgumentError(f"--out {self.out} is a file: expected a folder")

    @property
    def skip(self) -> int:
        """Tokens at the beginning that do not count, because most of their past is in the window."""
        return 2 * self.window


class Finished(NamedTuple):
    """What was found, and where the report and the memory are."""

    report: Report
    page: Path
    memory: Path

    @property
    def exact(self) -> bool:
        """Whether the tokens written with every entry read, and the answers after reopening, were the same."""
        written, reopened = self.report.written, self.report.reopened
        return written.n_equal == len(written.full) and reopened.here == reopened.elsewhere


def run(settings: Settings, progress: Progress) -> Finished:
    """Run the demo and write its report.

    Raises
    ------
    Error
        The model or the text cannot be used; the message says what to do.
    """
    begun = time.perf_counter()
    source = read(settings.text, n_tokens=settings.n_tokens)
    advance = progress.start("loading the model", 1)
    pretrained = load(settings.model, dtype=settings.dtype)
    advance(1)
    progress.end(_kind_of(pretrained))
    least = settings.skip + LEAST_MEASURED
    text = tokenize(source, pretrained.tokenizer, n_tokens=settings.n_tokens, least=least)
    _make(settings.out)
    experiment = Experiment(
        pretrained.model,
        text,
        window=settings.window,
        sinks=settings.sinks,
        skip=settings.skip,
        progress=progress,
    )
    measured = experiment.run(settings.top_k, other_windows=settings.other_windows)
    folder = settings.out / "demo-memory"
    facts = _facts(pretrained)
    report = Report(
        model=pretrained.name,
        rows=measured.rows,
        baseline=measured.rows[1],
        full=measured.rows[-1],
        windows=measured.windows,
        n_entries=len(text.ids) - settings.sinks - (settings.window - 1),
        reading=measured.reading,
        reopened=_reopen(measured.memory, folder, progress),
        written=_go_on(settings, pretrained, text, progress),
        window=settings.window,
        sinks=settings.sinks,
        chunk=experiment.chunk,
        whole_chunk=experiment.whole_chunk,
        skip=settings.skip,
        facts=facts | {"Took": f"{time.perf_counter() - begun:.0f} s, loading included"},
    )
    page = settings.out / "report.html"
    page.write_text(render(report), "utf-8")
    return Finished(report, page, folder)


def _make(folder: Path) -> None:
    """Make a folder to write to, before there is anything to lose."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out {folder}: {error.strerror}; give a folder that can be made") from error
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"--out {folder}: nothing can be written there; give another folder")


def _reopen(memory: Memory, folder: Path, progress: Progress) -> Reopened:
    """Save a memory, and compare what it answers here with what it answers in another process."""
    advance = progress.start("saving, reopening", 3)
    here = digest(memory)
    advance(1)
    begun = time.perf_counter()
    memory.save(folder, overwrite=True)
    saved = time.perf_counter()
    advance(1)
    elsewhere = digest_elsewhere(folder)
    advance(1)
    n_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    progress.end("the same bits in a new process" if here == elsewhere else "DIFFERENT answers in a new process")
    return Reopened(n_bytes, here, elsewhere, saved - begun)


def _go_on(settings: Settings, pretrained: Pretrained, text: Text, progress: Progress) -> Written:
    """Let the model continue the text with full attention and with a memory read in full, in float32.

    In float32, because two ways to the same sum differ in their last bits, which in bfloat16 decide near ties.
    """
    model, chunk = pretrained.model.float(), max(1, settings.window // 2)
    prompt = text.ids[: PROMPT_WINDOWS * settings.window]
    advance = progress.start("going on with the text", 2)
    full = go_on(model, prompt, cache=DynamicCache(), n_tokens=N_WRITTEN, chunk=chunk)
    advance(1)
    with mnemex.hf.attach(model, mnemex.Memory.for_model(model), top_k=None) as attachment:
        cache = attachment.cache(window=settings.window, sinks=settings.sinks)
        memory = go_on(model, prompt, cache=cache, n_tokens=N_WRITTEN, chunk=chunk)
    advance(1)
    same = n_equal(full, memory)
    progress.end(f"{same} of {len(full)} tokens are those of full attention")
    end = "".join(text.pieces[: len(prompt)])[-SHOWN_CHARACTERS:].split("\n")[-SHOWN_LINES:]
    return Written("\n".join(end), len(prompt), *_spelled(pretrained, full, memory), same)


def _spelled(pretrained: Pretrained, full: np.ndarray, memory: np.ndarray) -> tuple[list[str], list[str]]:
    decode = pretrained.tokenizer.decode
    return [str(decode(int(i))) for i in full], [str(decode(int(i))) for i in memory]


def _kind_of(pretrained: Pretrained) -> str:
    model = pretrained.model
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return f"{pretrained.name}: {millions:.0f} million parameters, {str(model.dtype).removeprefix('torch.')}"


def _facts(pretrained: Pretrained) -> dict[str, str]:
    versions = {"mnemex": mnemex.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    versions["Python"] = platform.python_version()
    return {
        "Model": _kind_of(pretrained),
        "Processor": f"{processor()}, {torch.get_num_threads()} threads",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Date": time.strftime("%Y-%m-%d"),
    }
