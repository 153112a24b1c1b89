"""What tables can be taken from: objects that speak Arrow's C interfaces, and files, which pyarrow opens.

pyarrow is imported when the first path is given; a file comes a few megabytes at a time.
"""

from __future__ import annotations

import glob
import os
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from mnemex.errors import ArgumentError, DtypeError, FormatError, MissingDependency, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class ArrowStream(Protocol):
    """Tables and readers of pyarrow, polars, duckdb, pandas and nanoarrow, and what `to_arrow` gives."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class ArrowArray(Protocol):
    """Record batches."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...


Table = ArrowStream | ArrowArray
Source = Table | str | os.PathLike[str]


def rows_of(source: object) -> int | None:
    """Count the table rows of a source without reading it; None where it does not say, or cannot be read."""
    if _is_table(source):
        rows = getattr(source, "num_rows", None)
        return rows if isinstance(rows, int) else None
    counts: list[int | None]
    if isinstance(source, list | tuple):
        counts = [None if isinstance(part, list | tuple) else rows_of(part) for part in source]
    elif isinstance(source, str | os.PathLike):
        try:
            counts = [_parquet_rows(path) for path in _paths(os.fspath(source))]
        except (ArgumentError, FormatError, NotFoundError, MissingDependency):
            return None  # it is refused when its turn comes
    else:
        return None
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _parquet_rows(path: str) -> int | None:
    with _naming(path):
        if not _magic(path).startswith(b"PAR1"):
            return None
        return int(_pyarrow("pyarrow.parquet").read_metadata(path).num_rows)


def parts(source: object, wanted: set[str], rows: int) -> Iterator[tuple[str | None, Iterable[Table]]]:
    """Give the name of each file (None for what is no file), and its tables.

    From a file come the `wanted` columns, about so many `rows` at a time.
    """
    if _is_table(source):
        yield None, [source]  # type: ignore[list-item]
    elif isinstance(source, str | os.PathLike):
        for path in _paths(os.fspath(source)):
            yield path, _opened(path, wanted, rows)
    elif isinstance(source, list | tuple) or hasattr(source, "__next__"):
        for part in source:  # type: ignore[attr-defined]
            if isinstance(part, list | tuple):
                raise _unknown(part)
            yield from parts(part, wanted, rows)
    else:
        raise _unknown(source)


def _is_table(source: object) -> bool:
    speaks = hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__")
    return speaks and not isinstance(source, type)


def _unknown(source: object) -> DtypeError:
    arrays = ": give arrays to stage() or write()" if hasattr(source, "__array__") else ""
    what = f"the class {source.__name__}" if isinstance(source, type) else type(source).__name__
    return DtypeError(
        f"source is {what}; expected a table with __arrow_c_stream__ or __arrow_c_array__ (pyarrow, "
        f"polars, duckdb, ...), the path or glob of Parquet or Arrow files, or a list of those{arrays}"
    )


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


def _magic(path: str) -> bytes:
    with open(path, "rb") as head:  # noqa: PTH123
        return head.read(8)


def _opened(path: str, wanted: set[str], rows: int) -> Iterator[Table]:
    """Open a Parquet or Arrow file, told apart by their first bytes."""
    with _naming(path):
        magic = _magic(path)
        if magic.startswith(b"PAR1"):
            # With a buffer a row group is not read whole, without pre_buffer the file is not.
            file = _pyarrow("pyarrow.parquet").ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
            batches = file.iter_batches(batch_size=rows, columns=_projected(file.schema_arrow.names, wanted))
        else:
            ipc = _pyarrow("pyarrow.ipc")
            # Not mapped: pages that were read would stay in memory.
            source = _pyarrow("pyarrow").OSFile(path)
            if magic.startswith(b"ARROW1"):
                file = ipc.open_file(source)
                batches = (file.get_batch(at) for at in range(file.num_record_batches))
            else:
                batches = iter(ipc.open_stream(source))
    return _each(path, batches)


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
