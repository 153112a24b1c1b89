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


def parts(source: object, wanted: set[str], rows: int) -> Iterator[tuple[str | None, Iterable[Table], int | None]]:
    """Give the name of each file (None for what is no file), its tables, and how many rows it has if that is known.

    From a file come the `wanted` columns, about so many `rows` at a time.
    """
    if _is_table(source):
        total = getattr(source, "num_rows", None)
        yield None, [source], total if isinstance(total, int) else None  # type: ignore[list-item]
    elif isinstance(source, str | os.PathLike):
        for path in _paths(os.fspath(source)):
            yield path, *_opened(path, wanted, rows)
    elif isinstance(source, list | tuple) or hasattr(source, "__next__"):
        for part in source:  # type: ignore[attr-defined]
            if isinstance(part, list | tuple):
                raise _unknown(part)
            yield from parts(part, wanted, rows)
    else:
        raise _unknown(source)


def _is_table(source: object) -> bool:
    return hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__")


def _unknown(source: object) -> DtypeError:
    arrays = ": give arrays to stage() or write()" if hasattr(source, "__array__") else ""
    return DtypeError(
        f"source is {type(source).__name__}; expected a table with __arrow_c_stream__ or __arrow_c_array__ (pyarrow, "
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


def _opened(path: str, wanted: set[str], rows: int) -> tuple[Iterator[Table], int | None]:
    """Open a Parquet or Arrow file, told apart by their first bytes."""
    with _naming(path):
        with open(path, "rb") as head:  # noqa: PTH123
            magic = head.read(8)
        if magic.startswith(b"PAR1"):
            file = _pyarrow("pyarrow.parquet").ParquetFile(
                path, buffer_size=1 << 20
            )  # without it, a row group is read whole
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
