"""Saving and opening: folders of Arrow IPC files with a checksummed manifest."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from mnemex import _native
from mnemex.errors import ArgumentError, DtypeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mnemex._native import NativeSnapshot
    from mnemex.bank import Bank
    from mnemex.memory import Memory


def save_banks(
    path: str | os.PathLike[str],
    kind: str,
    snapshots: Sequence[NativeSnapshot],
    metadata: Mapping[str, object],
    *,
    overwrite: bool,
) -> None:
    """Save versions of banks as one folder."""
    _native.save(_path(path), kind, list(snapshots), json.dumps(metadata, sort_keys=True), overwrite)


def open(  # noqa: A001 - `mnemex.open` is what the reader of a saved bank writes
    path: str | os.PathLike[str], *, threads: int | None = None
) -> Bank | Memory:
    """Open what `save` wrote: a `Bank` or a `Memory`, whichever was saved, with bit-identical answers.

    Parameters
    ----------
    path
        The folder.
    threads
        Threads per call of what is opened.

    Raises
    ------
    NotFoundError
        Nothing is there.
    FormatError
        A truncated, altered or foreign file.
    """
    from mnemex.bank import Bank
    from mnemex.memory import Memory

    kind, metadata, natives = _native.open(_path(path))
    banks = [Bank._of(native, threads=threads) for native in natives]
    return banks[0] if kind == "bank" else Memory._restored(banks, json.loads(metadata))


def _path(path: str | os.PathLike[str]) -> str:
    try:
        name = os.fspath(path)
    except TypeError:
        raise DtypeError(f"path={path!r} must be a path") from None
    if not isinstance(name, str):
        name = os.fsdecode(name)
    if not name or "\0" in name:
        raise ArgumentError(f"path={name!r} is not a path")
    return name
