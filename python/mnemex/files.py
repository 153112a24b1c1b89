"""Saving and opening: folders of Arrow IPC files with a checksummed manifest."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from mnemex import _native
from mnemex.errors import ArgumentError, DtypeError
from mnemex.policy import is_policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mnemex._native import NativeSnapshot
    from mnemex.bank import Bank
    from mnemex.memory import Memory
    from mnemex.policy import Policy


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
    path: str | os.PathLike[str],
    *,
    write: Policy | None = None,
    evict: Policy | None = None,
    threads: int | None = None,
) -> Bank | Memory:
    """Open what `save` wrote: a `Bank` or a `Memory`, whichever was saved, with bit-identical answers.

    Parameters
    ----------
    path
        The folder.
    write, evict
        The policy in Python that the bank was made with, or every bank of a memory that has one: a file holds its name
        alone. Without it such a bank can be read, and refuses writes.
    threads
        Threads per call of what is opened.

    Raises
    ------
    ArgumentError
        A policy that the bank was not made with.
    NotFoundError
        Nothing is there.
    FormatError
        A truncated, altered or foreign file.
    """
    from mnemex.bank import Bank
    from mnemex.memory import Memory

    kind, metadata, natives = _native.open(_path(path))
    banks = [Bank._of(native, threads=threads) for native in natives]
    policy = write if write is not None else evict
    if policy is not None:
        if not is_policy(policy) or (write is not None and evict is not None):
            raise ArgumentError("write, evict: expected one object with plan(columns, staged, hits), or none")
        banks = [bank._with_policy(policy) if kind == "bank" or bank._native.policy[1] else bank for bank in banks]
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
