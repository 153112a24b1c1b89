"""The demo on the terminal: progress bars while it works (on stderr), the table when it is done (on stdout).

Where stderr is a file, each task is a line when it is done.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from mnemex.demo.units import percent, size

if TYPE_CHECKING:
    from mnemex.demo.measure import Advance
    from mnemex.demo.run import Finished


class Screen:
    """Progress bars for the length of a `with` block, one line for each task."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=26)),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[bold]{task.fields[result]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, task: str, total: int) -> Advance:
        """Add a bar for a task of `total` steps."""
        self._task = added = self._progress.add_task(task, total=total, result="")
        return lambda n: self._progress.advance(added, n)

    def end(self, result: str) -> None:
        """Write a task's result beside its bar."""
        self._progress.update(self._task, result=result)
        if self._progress.disable:
            print(f"{self._progress.tasks[self._task].description}: {result}", file=sys.stderr, flush=True)


def show(finished: Finished) -> None:
    """Print the table, the two checks, and where the report is."""
    report, console = finished.report, Console(highlight=False)
    reading = report.reading.text
    console.print(Text(f"\n{report.model} reads {reading.name}", "bold"))
    console.print(f"{len(reading.ids):,} tokens, measured from token {report.skip:,} on")
    table = Table(box=box.HORIZONTALS, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False)
    table.add_column("attends to", no_wrap=True)
    for name in ("bits/byte", "recovered", "local KV", "memory", "ms/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            Text(row.name),
            f"{row.bits_per_byte:.4f}",
            percent(row.recovered),
            size(row.local_bytes),
            size(row.memory_bytes) if row.memory_bytes else "–",
            f"{row.ms_per_token:.2f}",
            end_section=row is report.baseline or row is report.rows[-2],
        )
    console.print(table)
    written, reopened = report.written, report.reopened
    n = len(written.full)
    _verdict(
        console,
        f"generate: {written.n_equal} of {n} tokens are DynamicCache's, with every entry read",
        written.n_equal == n,
    )
    _verdict(
        console,
        f"saved {size(reopened.n_bytes)}, reopened in a new process: the same bits in every layer",
        reopened.here == reopened.elsewhere,
    )
    console.print(Text(f"report: {finished.page}    memory: {finished.memory}"))


def _verdict(console: Console, claim: str, holds: bool) -> None:  # noqa: FBT001
    console.print(Text.assemble(("yes  ", "green") if holds else ("NO   ", "bold red"), claim))
