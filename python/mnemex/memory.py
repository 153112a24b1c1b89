"""The memory of a model: a bank per layer, one commit for all."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Self, TypeVar

from mnemex import _arguments as arguments
from mnemex import _native
from mnemex.bank import Bank, Snapshot
from mnemex.describe import DescribedLayers
from mnemex.errors import ArgumentError, DtypeError, FormatError, ShapeError, Unsupported
from mnemex.results import Receipt

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from mnemex._arrays import ArrayLike, IntsLike
    from mnemex.results import Hits

B = TypeVar("B", Bank, Snapshot)


class _Layers(DescribedLayers, Generic[B]):
    """Banks, or snapshots of them, by layer."""

    _banks: dict[int, B]

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have a bank, ascending."""
        return tuple(sorted(self._banks))

    @property
    def rows(self) -> int:
        """Rows of every bank."""
        return next(iter(self._banks.values())).rows

    @property
    def nbytes(self) -> int:
        """Bytes of memory of all banks."""
        return sum(bank.nbytes for bank in self._distinct())

    def __getitem__(self, layer: int) -> B:
        try:
            return self._banks[layer]
        except (KeyError, TypeError):
            raise ArgumentError(f"layer {layer!r} has no bank; this memory has {list(self.layers)}") from None

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __len__(self) -> int:
        return sum(map(len, self._distinct()))

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name}: {len(self)} entries, layers={list(self.layers)}, rows={self.rows}, {self.nbytes:,} bytes>"

    def __reduce__(self) -> NoReturn:
        raise Unsupported(
            f"a {type(self).__name__} cannot be pickled: Memory.save(path) keeps it, mnemex.open reads it back"
        )

    def _distinct(self) -> list[B]:
        """List the banks, each once, in layer order."""
        return list({id(self._banks[layer]): self._banks[layer] for layer in self.layers}.values())


class MemorySnapshot(_Layers[Snapshot]):
    """A frozen version of a memory: `snapshot[layer]` is a `Snapshot`."""

    def __init__(self, snapshots: Mapping[int, Snapshot], about: Mapping[str, Any]) -> None:
        self._banks, self._about = dict(snapshots), dict(about)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def copy(self) -> Memory:
        """Make an independent memory that shares every block until one side writes."""
        copies = {id(bank): bank.copy() for bank in self._distinct()}
        return Memory({layer: copies[id(bank)] for layer, bank in self._banks.items()}, **self._about)


class Memory(_Layers[Bank]):
    """The banks of one model by layer: `memory[layer]` is a `Bank`.

    Writes to any number of layers become visible together, at `commit`.

    Parameters
    ----------
    banks
        Bank by layer, all with as many rows; several layers may share one.
    fingerprint
        What identifies the model that writes it.
    auto_rows
        Whether the first batch decides the number of rows.
    next_position
        Position at which the model's next prompt starts, after what the memory holds.
    keys
        "rotated": with the rotary encoding of their positions; "plain": without.
    """

    def __init__(
        self,
        banks: Mapping[int, Bank],
        *,
        fingerprint: str | None = None,
        auto_rows: bool = False,
        next_position: int = 0,
        keys: Literal["rotated", "plain"] = "rotated",
    ) -> None:
        self._banks = _by_layer(banks)
        self.fingerprint = fingerprint
        self.auto_rows = auto_rows
        self.next_position = next_position
        self.keys = keys
        self._writing = threading.RLock()

    @classmethod
    def for_model(
        cls,
        model: Any,  # noqa: ANN401 - a transformers model; named here, torch would have to be imported
        *,
        layers: Any = "auto",  # noqa: ANN401 - "auto" or layer numbers
        keys: Literal["rotated", "plain"] = "rotated",
        rows: int | Literal["auto"] = "auto",
        **bank: Any,  # noqa: ANN401 - whatever `Bank` takes
    ) -> Memory:
        """Make an empty memory for a transformers model: see `mnemex.hf.memory_for_model`."""
        from mnemex.hf import memory_for_model

        return memory_for_model(model, layers=layers, keys=keys, rows=rows, **bank)

    # ------------------------------------------------------------------ writes

    def stage(self, layer: int, keys: ArrayLike, values: ArrayLike | None = None, **how: Any) -> NDArray[np.int64]:  # noqa: ANN401
        """Take tokens of one layer in; takes what `Bank.stage` takes."""
        return self[layer].stage(keys, values, **how)

    def commit(self) -> list[Receipt]:
        """Publish what is staged in every bank at once; one receipt per bank, in layer order.

        All or nothing: no reader that takes a snapshot of the memory sees one layer without the others.
        """
        with self._writing:
            banks = self._distinct()
            return [
                Receipt._of(native)
                for native in _native.commit_all([bank._native for bank in banks], banks[0]._threads)
            ]

    def rollback(self, rows: IntsLike | None = None, end: int | IntsLike | None = None) -> None:
        """Drop what is staged, in every bank or, where it is refused, in none; takes what `Bank.rollback` takes."""
        ends = None if end is None else arguments.ends("end", end)
        self._change("rollback", ids=ends, rows=arguments.rows("rows", rows, self.rows))

    def touch(self, layer: int, hits: Hits, mass: ArrayLike | None = None) -> None:
        """Stage that entries of one layer were used: see `Bank.touch`."""
        self[layer].touch(hits, mass)

    # ------------------------------------------------------------------ versions

    def snapshot(self) -> MemorySnapshot:
        """Freeze all layers as they are, between two commits."""
        with self._writing:
            frozen = {id(bank): bank.snapshot() for bank in self._distinct()}
            about = {
                "fingerprint": self.fingerprint,
                "auto_rows": self.auto_rows,
                "next_position": self.next_position,
                "keys": self.keys,
            }
            return MemorySnapshot({layer: frozen[id(bank)] for layer, bank in self._banks.items()}, about)

    def copy(self) -> Memory:
        """Make an independent memory that shares every block until one side writes."""
        return self.snapshot().copy()

    def __copy__(self) -> Memory:
        return self.copy()

    def __deepcopy__(self, memo: object) -> Memory:
        return self.copy()

    # ------------------------------------------------------------------ changes at once

    # All or none: what one bank would refuse, such as a truncation while tokens are staged, changes no bank.

    def _change(self, change: str, **how: Any) -> None:  # noqa: ANN401
        with self._writing:
            _native.change_all([bank._native for bank in self._distinct()], change, **how)

    def delete(self, ids: IntsLike | None = None, labels: IntsLike | None = None, rows: IntsLike | None = None) -> None:
        """End entries by id, by label, or both, in every layer: see `Bank.delete`."""
        gone, named = arguments.ended(ids, labels)
        self._change("delete", ids=gone, labels=named, rows=arguments.rows("rows", rows, self.rows))

    def truncate(self, end: int | IntsLike, rows: IntsLike | None = None) -> None:
        """Keep ids below `end`, one number or one per row, in every layer or, where it is refused, in none."""
        self._change("truncate", ids=arguments.ends("end", end), rows=arguments.rows("rows", rows, self.rows))

    def reset(self, rows: IntsLike | None = None) -> None:
        """Empty rows, in every layer or, where it is refused, in none."""
        self._change("reset", rows=arguments.rows("rows", rows, self.rows))

    def reorder(self, index: IntsLike) -> None:
        """Make row i a copy of row `index[i]`, in every layer or, where it is refused, in none."""
        self._change("reorder", rows=arguments.index(index, self.rows))

    def fork(self, repeats: int) -> None:
        """Repeat each row in place, in every layer or, where it is refused, in none."""
        self._change("fork", repeats=arguments.count("repeats", repeats))

    # ------------------------------------------------------------------ keeping

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Save as one folder, atomically; `mnemex.open` reads it back. See `Bank.save`."""
        from mnemex.files import save_banks

        with self._writing:
            banks = self._distinct()
            number = {id(bank): i for i, bank in enumerate(banks)}
            layers = {str(layer): number[id(bank)] for layer, bank in self._banks.items()}
            snapshots = [bank._native_snapshot() for bank in banks]
        metadata = {
            "auto_rows": self.auto_rows,
            "fingerprint": self.fingerprint,
            "keys": self.keys,
            "layers": layers,
            "next_position": self.next_position,
        }
        save_banks(path, "memory", snapshots, metadata, overwrite=overwrite)

    @classmethod
    def _restored(cls, banks: list[Bank], metadata: Mapping[str, Any]) -> Self:
        """Rebuild what `save` wrote."""
        try:
            by_layer = {int(layer): banks[bank] for layer, bank in metadata["layers"].items()}
            return cls(
                by_layer,
                fingerprint=metadata["fingerprint"],
                auto_rows=bool(metadata["auto_rows"]),
                next_position=int(metadata["next_position"]),
                keys=metadata.get("keys", "rotated"),
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                f"the manifest does not describe a memory ({error!r}): the file is foreign or altered"
            ) from None


def _by_layer(banks: object) -> dict[int, Bank]:
    """Take banks by layer number, as many rows in each."""
    if not isinstance(banks, Mapping):
        raise DtypeError(f"banks are {type(banks).__name__}; expected banks by layer, as in {{0: Bank(...)}}")
    if not banks:
        raise ArgumentError("banks is empty: give a bank for at least one layer")
    checked: dict[int, Bank] = {}
    for layer, bank in banks.items():
        if not isinstance(bank, Bank):
            raise DtypeError(f"banks[{layer!r}] is {type(bank).__name__}; expected a Bank")
        checked[arguments.count("a layer of banks", layer, low=0)] = bank
    rows = {layer: bank.rows for layer, bank in checked.items()}
    if len(set(rows.values())) > 1:
        raise ShapeError(f"banks have different numbers of rows, by layer {rows}; expected as many in each")
    return checked


def from_cache(past_key_values: Any, *, attention_mask: Any = None, **bank: Any) -> Memory:  # noqa: ANN401 - see below
    """Make a memory of the keys and values in a cache of transformers, with the positions at which they stand.

    Parameters
    ----------
    past_key_values
        A `DynamicCache`, or another cache of transformers 5. Layers that keep only a window are left out; of an
        `EncoderDecoderCache`, the decoder's own cache is read. The cache itself stays as it is.
    attention_mask
        0 for pads, which are not written, `[rows, T]`, a tensor; None: there are none.
    **bank
        Arguments of every bank, such as `key_codec`; `capacity` may have one item per layer, as for `for_model`.

    Returns
    -------
    Memory
        Committed, of as many rows as the cache has. It does not know which model wrote it.

    Raises
    ------
    ArgumentError
        Not a cache, or one that is empty.
    Unsupported
        The cache of a memory.

    Examples
    --------
    >>> past = model(prompt, use_cache=True).past_key_values
    >>> memory = mx.from_cache(past)
    >>> with mx.hf.attach(model, memory, top_k=32) as a:
    ...     model(question, position_ids=a.next_position + torch.arange(question.shape[1])[None])
    """
    from mnemex.hf.from_cache import memory_from_cache

    return memory_from_cache(past_key_values, attention_mask=attention_mask, **bank)
