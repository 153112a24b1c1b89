"""Tables into a bank: the call, what it reports, and its bar on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from mnemex import _arguments as arguments
from mnemex._native import NativeIngest
from mnemex.errors import ArgumentError, DtypeError, FormatError, MissingDependency
from mnemex.sources import parts, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mnemex.bank import Bank
    from mnemex.sources import Source

BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did, or has done so far.

    Attributes
    ----------
    rows
        Table rows that were read.
    total_rows
        Table rows that there are in all; None where that is not known before they are read: iterators, streams, Arrow
        files, and what is no list of tables and Parquet files.
    entries
        Entries that were written, over all lanes: a token makes one in each head.
    skipped
        Tokens that were left out, by reason: "null", "nonfinite", "duplicate".
    evicted
        Entries, over all lanes, that the evict policy ended.
    batches
        Commits.
    bytes
        Bytes of vectors that were read.
    seconds
        Time since the start.
    files
        Files that were read, in order.
    version
        Number of the version of the bank that holds what it has seen.
    """

    rows: int
    total_rows: int | None
    entries: int
    skipped: dict[str, int]
    evicted: int
    batches: int
    bytes: int
    seconds: float
    files: tuple[str, ...]
    version: int

    @property
    def rate(self) -> float:
        """Bytes of vectors per second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        facts = [f"{self.entries:,} entries from {self.rows:,} rows"]
        facts += [f"{len(self.files):,} file{'s' if len(self.files) > 1 else ''}"] if self.files else []
        facts += [f"{n:,} {reason} skipped" for reason, n in self.skipped.items()]
        facts += [f"{self.evicted:,} evicted"] if self.evicted else []
        facts += [f"{self.bytes / 1e6:,.1f} MB in {self.seconds:.2f} s ({self.rate / 1e6:,.0f} MB/s)"]
        return f"<IngestReport: {', '.join(facts)}, version {self.version}>"


class Ingests:
    """The part of a bank that takes tables in."""

    def ingest(
        self,
        source: Source | Iterable[Source],
        *,
        key: str,
        value: str | None = None,
        row: str | None = None,
        head: str | None = None,
        label: str | None = None,
        position: str | None = None,
        columns: Mapping[str, str] | None = None,
        nulls: Literal["raise", "skip"] = "raise",
        on_duplicate: Literal["raise", "skip", "replace"] | None = None,
        commit: Literal["end", "batch"] = "end",
        batch_bytes: int = BATCH_BYTES,
        progress: bool | Callable[[IngestReport], object] = False,
        threads: int | None = None,
    ) -> IngestReport:
        """Take tables in: Arrow from any library, or Parquet and Arrow files, of any size.

        Vectors are lists of float32 or float16 (fixed-size lists, lists of equal lengths, `arrow.fixed_shape_tensor`),
        or fixed-size binary and uint16 lists whose field metadata name the type ("mnemex.dtype": "bfloat16"). A bank of
        several heads takes `[heads][dim]`, or `heads * dim` numbers head after head. Reads go on meanwhile and see the
        bank as it was; other writes wait until afterwards, or the ingest is refused.

        Parameters
        ----------
        source
            A table with `__arrow_c_stream__` or `__arrow_c_array__`; the path or glob of Parquet or Arrow files (needs
            pyarrow); or a list or iterator of those.
        key, value
            Columns of vectors.
        row
            Column of bank rows: tokens of several rows in any order, of each row in its own. None: the only row.
        head
            Column of head numbers, where each table row holds one head: a token's heads together, 0 first, as
            `to_arrow` has them. None: a table row holds a whole token.
        label, position
            Columns of whole numbers.
        columns
            Columns of the bank by name, and the table's column for each.
        nulls
            "raise": a null row or vector is refused; "skip": its token is left out. A null inside a vector is refused.
        on_duplicate
            None, or what to do with a label that the row has already: "raise", "skip" or "replace". -1, which is no
            label, may repeat. An entry that the evict policy ended in an earlier batch is no duplicate, so in a bank
            with a capacity the outcome depends on `batch_bytes`, whatever `commit` is.
        commit
            "end": all or nothing, as one version; "batch": each batch is published, and stays where a later one fails
            or the call is interrupted.
        batch_bytes
            Bytes of vectors per batch: what is held in memory beside the bank, about, and what the source holds: a
            record batch of an Arrow file is read whole, so write such files in small ones.
        progress
            True: a bar on the terminal (needs rich); a function: called with an `IngestReport` after each batch, and
            what it raises ends the call.
        threads
            For this call, instead of the bank's.

        Raises
        ------
        StateError
            Tokens are staged, or the bank was changed meanwhile.
        ArgumentError, ShapeError, DtypeError, RowError, NonFinite, CapacityError
            What a column or a row is refused for, with file, column and row.
        FormatError, NotFoundError
            A source that fails, or is not what it says.
        MissingDependency
            pyarrow or rich is needed and not installed.
        """
        names = {"key": key, "value": value, "row": row, "head": head, "label": label, "position": position}
        checked = tuple(_name(argument, name) for argument, name in names.items())
        if key is None:
            raise DtypeError("key=None must be the name of the column of keys")
        own = _columns(columns)
        skip_nulls = arguments.word("nulls", nulls, ("raise", "skip")) == "skip"
        by_batch = arguments.word("commit", commit, ("end", "batch")) == "batch"
        if on_duplicate is not None:
            arguments.word("on_duplicate", on_duplicate, ("raise", "skip", "replace"))
            if label is None:
                raise ArgumentError("on_duplicate= compares labels, and label= is missing: name the column of labels")
        size = arguments.count("batch_bytes", batch_bytes)
        if not isinstance(progress, bool) and not callable(progress):
            raise DtypeError(f"progress={progress!r} must be True, False, or a function of an IngestReport")
        bank: Bank = self  # type: ignore[assignment]  # Ingests is a part of Bank alone
        declared = bank.columns
        for ours, _ in own:
            if ours not in declared:
                known = ", ".join(map(repr, declared)) or "none"
                raise ArgumentError(f"columns name {ours!r}; this bank declares {known}")
        native = NativeIngest(bank._native, (*checked, own), skip_nulls, by_batch, on_duplicate, size)
        wanted = {name for name in checked if name is not None} | {theirs for _, theirs in own}
        run = _Run(bank, native, wanted, size, bank._threads_of(threads))
        with _reporter(progress) as report:
            return run.over(source, report)


def _name(argument: str, name: object) -> Any:  # noqa: ANN401 - the same string, or None
    if name is not None and not isinstance(name, str):
        raise DtypeError(f"{argument}={name!r} must be the name of a column")
    if name is not None and any("\ud800" <= letter <= "\udfff" for letter in name):
        raise ArgumentError(f"{argument}={name!r} must be the name of a column: half a surrogate pair is no text")
    return name


def _columns(columns: object) -> list[tuple[str, str]]:
    """Give the bank's and the table's name of each column."""
    if columns is None:
        return []
    if not isinstance(columns, Mapping):
        raise DtypeError(f"columns={columns!r} must be a dict: the bank's columns by name, the table's column for each")
    for ours, theirs in columns.items():
        if ours is None or theirs is None:
            raise DtypeError(f"columns={dict(columns)!r}: expected the name of a column for each, not None")
    return [(_name("columns", ours), _name("columns", theirs)) for ours, theirs in columns.items()]


@dataclass(slots=True)
class _Run:
    """One ingest: what it reads, and how far it is."""

    bank: Bank
    native: NativeIngest
    wanted: set[str]
    batch_bytes: int
    threads: int | None
    started: float = field(default_factory=perf_counter)
    total_rows: int | None = None
    files: list[str] = field(default_factory=list)

    def over(self, source: Source | Iterable[Source], report: Callable[[IngestReport], object] | None) -> IngestReport:
        """Read everything there is, and publish it."""

        def tell(done: tuple[int, ...]) -> None:
            if report is not None:
                report(self.report(done))

        streamed = 0
        self.total_rows = rows_of(source)
        for file, tables in parts(source, self.wanted, self.rows_at_once()):
            if file is not None:
                self.native.end_source(None)
                self.files.append(file)
            first = streamed if file is None else 0
            for table in tables:
                try:
                    first += self.native.feed(table, file, first, tell, self.threads)
                except FormatError as error:
                    # All that the C stream of an iterator of batches tells of a Ctrl-C inside it is this text.
                    if "KeyboardInterrupt" in str(error):
                        raise KeyboardInterrupt from error
                    raise
            if file is None:
                streamed = first
            else:
                self.native.end_source(file)
        self.native.end_source(None)
        done = self.native.finish(self.threads)
        tell(done)
        return self.report(done)

    def report(self, done: tuple[int, ...]) -> IngestReport:
        """Put what the native module counted into words."""
        rows, tokens, null, nonfinite, duplicate, batches, size, evicted, version = done
        reasons = (("null", null), ("nonfinite", nonfinite), ("duplicate", duplicate))
        skipped = {reason: n for reason, n in reasons if n}
        seconds = perf_counter() - self.started
        entries = tokens * self.bank.heads
        files = tuple(self.files)
        return IngestReport(rows, self.total_rows, entries, skipped, evicted, batches, size, seconds, files, version)

    def rows_at_once(self) -> int:
        """Count the rows to read from a file at a time: a quarter of the budget, as read and as decoded."""
        bank = self.bank
        each = 4 * bank.heads * (bank.key_dim + (bank.value_dim or 0))
        return max(1, self.batch_bytes // 4 // each)


def _reporter(progress: object) -> Any:  # noqa: ANN401 - a context manager that gives a function of a report, or None
    if progress is True:
        return _bar()
    return nullcontext(progress or None)


@contextmanager
def _bar() -> Iterator[Callable[[IngestReport], None]]:
    """Show a bar on the terminal."""
    try:
        rich = import_module("rich.progress")
    except ImportError as error:
        raise MissingDependency(
            f"progress=True needs rich, which cannot be imported ({error}): pip install rich, or give a function"
        ) from error
    shown = ("[progress.description]{task.description}", "{task.completed:,} rows", "{task.fields[rate]}")
    with rich.Progress(
        rich.TextColumn(shown[0]),
        rich.BarColumn(),
        rich.TextColumn(shown[1]),
        rich.TextColumn(shown[2]),
        rich.TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task("ingest", total=None, rate="")

        def show(report: IngestReport) -> None:
            bar.update(task, completed=report.rows, total=report.total_rows, rate=f"{report.rate / 1e6:,.0f} MB/s")

        yield show
