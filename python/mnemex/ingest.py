"""Tables into a bank: which sources there are, and what was done.

Anything with `__arrow_c_stream__` or `__arrow_c_array__` is read natively, without pyarrow. Files are opened by pyarrow,
which is imported when the first path is given, and come a few megabytes at a time.
"""

from __future__ import annotations

import glob
import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from mnemex import _arguments as arguments
from mnemex._native import NativeIngest
from mnemex.errors import ArgumentError, DtypeError, FormatError, MissingDependency, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from mnemex.bank import Bank

    Progress = bool | Callable[["IngestReport"], object]

BATCH_BYTES = 64 << 20
ON_DUPLICATE = ("raise", "skip", "replace")


class ArrowStream(Protocol):
    """Tables and readers of pyarrow, polars, duckdb, pandas and nanoarrow, and what `to_arrow` gives."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class ArrowArray(Protocol):
    """Record batches."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...


Table = ArrowStream | ArrowArray
Source = Table | str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did, or has done so far.

    Attributes
    ----------
    rows
        Table rows that were read.
    total_rows
        Table rows that there are; None where the sources do not say.
    entries
        Entries that were written, over all lanes: a token makes one in each head.
    skipped
        Tokens that were left out, by reason: "null", "nonfinite".
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


def ingest(
    bank: Bank,
    source: Source | Iterable[Source],
    *,
    names: tuple[str, str | None, str | None, str | None, str | None, str | None],
    columns: Mapping[str, str] | None,
    nulls: str,
    on_duplicate: str | None,
    commit: str,
    batch_bytes: int,
    progress: Progress,
    threads: int | None,
) -> IngestReport:
    """Do what `Bank.ingest` says."""
    checked = [_name(argument, name) for argument, name in zip(_ARGUMENTS, names, strict=True)]
    own = [(_name("columns", ours), _name("columns", theirs)) for ours, theirs in dict(columns or {}).items()]
    skip_nulls = arguments.word("nulls", nulls, ("raise", "skip")) == "skip"
    by_batch = arguments.word("commit", commit, ("end", "batch")) == "batch"
    if on_duplicate is not None:
        arguments.word("on_duplicate", on_duplicate, ON_DUPLICATE)
    size = arguments.count("batch_bytes", batch_bytes)
    if not isinstance(progress, bool) and not callable(progress):
        raise DtypeError(f"progress={progress!r} must be True, False, or a function of an IngestReport")
    if names[0] is None:
        raise DtypeError("key=None must be the name of the column of keys")
    native = NativeIngest(bank._native, (*checked, own), skip_nulls, by_batch, on_duplicate, size)
    wanted = {name for name in checked if name is not None} | {theirs for _, theirs in own}
    run = _Run(bank, native, wanted, size, threads)
    with _reporter(progress) as report:
        return run.over(source, report)


_ARGUMENTS = ("key", "value", "row", "head", "label", "position")


def _name(argument: str, name: object) -> Any:  # noqa: ANN401 - the same string, or None
    if name is not None and not isinstance(name, str):
        raise DtypeError(f"{argument}={name!r} must be the name of a column")
    return name


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
        for file, tables, total in self.parts(source):
            if file is not None:
                self.native.end_source(None)
                self.files.append(file)
            self.total_rows = None if total is None else (self.total_rows or 0) + total
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
        rows, tokens, null, nonfinite, batches, size, evicted, version = done
        skipped = {reason: n for reason, n in (("null", null), ("nonfinite", nonfinite)) if n}
        seconds = perf_counter() - self.started
        entries = tokens * self.bank.heads
        files = tuple(self.files)
        return IngestReport(rows, self.total_rows, entries, skipped, evicted, batches, size, seconds, files, version)

    def parts(self, source: object) -> Iterator[tuple[str | None, Iterable[Table], int | None]]:
        """Give the tables of each file, or of what is no file, and how many rows they have."""
        if _is_table(source):
            total = getattr(source, "num_rows", None)
            yield None, [source], total if isinstance(total, int) else None  # type: ignore[list-item]
        elif isinstance(source, str | os.PathLike):
            for path in _paths(os.fspath(source)):
                yield path, *_opened(path, self.wanted, self.rows_at_once())
        elif isinstance(source, list | tuple) or hasattr(source, "__next__"):
            for part in source:  # type: ignore[attr-defined]
                if isinstance(part, list | tuple):
                    raise _unknown(part)
                yield from self.parts(part)
        else:
            raise _unknown(source)

    def rows_at_once(self) -> int:
        """Count the rows to read from a file at a time: a quarter of the budget, as read and as decoded."""
        bank = self.bank
        each = 4 * bank.heads * (bank.key_dim + (bank.value_dim or 0))
        return max(1, self.batch_bytes // 4 // each)


def _is_table(source: object) -> bool:
    return hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__")


def _unknown(source: object) -> DtypeError:
    arrays = ": give arrays to stage() or write()" if hasattr(source, "__array__") else ""
    return DtypeError(
        f"source is {type(source).__name__}; expected a table with __arrow_c_stream__ or __arrow_c_array__ (pyarrow, "
        f"polars, duckdb, ...), the path or glob of Parquet or Arrow files, or a list of those{arrays}"
    )


# ---------------------------------------------------------------------- files


def _paths(path: str | bytes) -> list[str]:
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise ArgumentError(f"source={name!r} is not a path")
    if os.path.isdir(name):  # noqa: PTH112 - a string, as the user wrote it
        raise ArgumentError(f"source={name!r} is a folder: name its files, as in {os.path.join(name, '*.parquet')!r}")  # noqa: PTH118
    if os.path.exists(name):  # noqa: PTH110
        return [name]
    found = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))  # noqa: PTH207, PTH113
    if not found:
        raise NotFoundError(f"source={name!r}: there is no such file")
    return found


def _pyarrow(module: str) -> Any:  # noqa: ANN401 - pyarrow is typed in part
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"reading files needs pyarrow, which cannot be imported ({error}): pip install pyarrow, or give a table "
            "that another library read"
        ) from error


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in what pyarrow and the system say of it."""
    try:
        yield
    except (_pyarrow("pyarrow").ArrowException, OSError) as error:
        raise FormatError(f"{path}: cannot be read as Parquet or Arrow: {error}") from error


def _opened(path: str, wanted: set[str], rows: int) -> tuple[Iterator[Table], int | None]:
    """Open a Parquet or Arrow file, told apart by their first bytes."""
    with _naming(path):
        with open(path, "rb") as head:  # noqa: PTH123
            magic = head.read(8)
        if magic.startswith(b"PAR1"):
            file = _pyarrow("pyarrow.parquet").ParquetFile(path)
            names, total = file.schema_arrow.names, file.metadata.num_rows
            batches = file.iter_batches(batch_size=rows, columns=_projected(names, wanted))
        else:
            ipc = _pyarrow("pyarrow.ipc")
            source = _pyarrow("pyarrow").OSFile(path)  # not mapped: pages that were read would stay in memory
            if magic.startswith(b"ARROW1"):
                file, total = ipc.open_file(source), None
                batches = (file.get_batch(at) for at in range(file.num_record_batches))
            else:
                batches, total = iter(ipc.open_stream(source)), None
    return _each(path, batches), total


def _projected(names: list[str], wanted: set[str]) -> list[str] | None:
    """Name the columns to read; all where one is missing, so that the error can list them."""
    return sorted(wanted) if wanted <= set(names) else None


def _each(path: str, batches: Iterator[Table]) -> Iterator[Table]:
    while True:
        with _naming(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


# ---------------------------------------------------------------------- progress


def _reporter(progress: Progress) -> Any:  # noqa: ANN401 - a context manager that gives a function of a report, or None
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
