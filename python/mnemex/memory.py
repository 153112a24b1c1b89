"""The memory of a model: a bank per layer, one commit for all."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal, Self

from mnemex import _native
from mnemex.describe import DescribedLayers
from mnemex.errors import ArgumentError, FormatError, StateError
from mnemex.results import Receipt

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mnemex._arrays import ArrayLike, IntsLike
    from mnemex.bank import Bank, Snapshot
    from mnemex.results import Hits


class MemorySnapshot(DescribedLayers):
    """A frozen version of a memory: `snapshot[layer]` is a `Snapshot`."""

    def __init__(self, snapshots: Mapping[int, Snapshot]) -> None:
        self._snapshots = dict(snapshots)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have a bank, ascending."""
        return tuple(sorted(self._snapshots))

    def __getitem__(self, layer: int) -> Snapshot:
        return self._snapshots[layer]

    def __len__(self) -> int:
        return sum(map(len, self._snapshots.values()))


class Memory(DescribedLayers):
    """The banks of one model by layer: `memory[layer]` is a `Bank`.

    Writes to any number of layers become visible together, at `commit`.

    Parameters
    ----------
    banks
        Bank by layer; several layers may share one.
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
        if not banks:
            raise ArgumentError("banks is empty: give a bank for at least one layer")
        self._banks = dict(banks)
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

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have a bank, ascending."""
        return tuple(sorted(self._banks))

    @property
    def rows(self) -> int:
        """Rows of every bank."""
        return next(iter(self._banks.values())).rows

    def __getitem__(self, layer: int) -> Bank:
        try:
            return self._banks[layer]
        except KeyError:
            raise ArgumentError(f"layer {layer!r} has no bank; this memory has {list(self.layers)}") from None

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self._banks

    def __len__(self) -> int:
        return sum(map(len, self._distinct()))

    def __repr__(self) -> str:
        return f"<Memory: {len(self)} entries, layers={list(self.layers)}, rows={self.rows}, {self.nbytes:,} bytes>"

    def _distinct(self) -> list[Bank]:
        """List the banks, each once, in layer order."""
        return list({id(self._banks[layer]): self._banks[layer] for layer in self.layers}.values())

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
        """Drop what is staged, in every bank; takes what `Bank.rollback` takes."""
        with self._writing:
            for bank in self._distinct():
                bank.rollback(rows, end)

    def touch(self, layer: int, hits: Hits, mass: ArrayLike | None = None) -> None:
        """Stage that entries of one layer were used: see `Bank.touch`."""
        self[layer].touch(hits, mass)

    # ------------------------------------------------------------------ versions

    def snapshot(self) -> MemorySnapshot:
        """Freeze all layers as they are, between two commits."""
        with self._writing:
            frozen = {id(bank): bank.snapshot() for bank in self._distinct()}
            return MemorySnapshot({layer: frozen[id(bank)] for layer, bank in self._banks.items()})

    def copy(self) -> Memory:
        """Make an independent memory that shares every block until one side writes."""
        with self._writing:
            copies = {id(bank): bank.copy() for bank in self._distinct()}
            banks = {layer: copies[id(bank)] for layer, bank in self._banks.items()}
            return Memory(
                banks,
                fingerprint=self.fingerprint,
                auto_rows=self.auto_rows,
                next_position=self.next_position,
                keys=self.keys,
            )

    # ------------------------------------------------------------------ changes at once

    def _each(self, change: str, *args: Any, **how: Any) -> None:  # noqa: ANN401
        with self._writing:
            banks = self._distinct()
            if change != "delete" and any(bank._native.has_staged for bank in banks):
                raise StateError("tokens or touches are staged: commit() or rollback() first")
            for bank in banks:
                getattr(bank, change)(*args, **how)

    def delete(self, ids: IntsLike | None = None, labels: IntsLike | None = None, rows: IntsLike | None = None) -> None:
        """End entries by id, by label, or both, in every layer: see `Bank.delete`."""
        self._each("delete", ids, labels, rows)

    def truncate(self, end: int | IntsLike, *, rows: IntsLike | None = None) -> None:
        """Keep ids below `end`, one number or one per row, in every layer."""
        self._each("truncate", end, rows=rows)

    def reset(self, *, rows: IntsLike | None = None) -> None:
        """Empty rows, in every layer."""
        self._each("reset", rows=rows)

    def reorder(self, index: IntsLike) -> None:
        """Make row i a copy of row `index[i]`, in every layer."""
        self._each("reorder", index)

    def fork(self, repeats: int) -> None:
        """Repeat each row in place, in every layer."""
        self._each("fork", repeats)

    # ------------------------------------------------------------------ keeping

    @property
    def nbytes(self) -> int:
        """Bytes of memory of all banks."""
        return sum(bank.nbytes for bank in self._distinct())

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
        Arguments of every bank, such as `key_codec`, `capacity`.

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
