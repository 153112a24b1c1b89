"""What a bank or a snapshot is: its shape, its parts, what it holds and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from mnemex import _arguments as arguments
from mnemex.describe import Described, Stats
from mnemex.errors import Unsupported

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mnemex._native import NativeSnapshot

    Config = tuple[int, int, int | None, bool, int | list[int] | None, str, str, str, str | None]


class Facts(Described):
    """Shape, parts and counts of one version."""

    _config: Config
    _threads: int | None

    def _native_snapshot(self) -> NativeSnapshot:
        raise NotImplementedError

    def _describe(self, config: Config, threads: int | None) -> None:
        self._config, self._threads = config, threads

    def _adopt(self, other: Facts) -> None:
        self._describe(other._config, other._threads)

    def _threads_of(self, threads: int | None) -> int | None:
        return self._threads if threads is None else arguments.count("threads", threads)

    @property
    def rows(self) -> int:
        """Rows."""
        return self._native_snapshot().rows

    @property
    def heads(self) -> int:
        """Key/value heads."""
        return self._config[0]

    @property
    def key_dim(self) -> int:
        """Numbers per key."""
        return self._config[1]

    @property
    def value_dim(self) -> int | None:
        """Numbers per value; None without values."""
        return self._config[1] if self._config[3] else self._config[2]

    @property
    def capacity(self) -> int | tuple[int, ...] | None:
        """Live entries per lane at most; one number for each head where they differ."""
        each = self._config[4]
        return tuple(each) if isinstance(each, list) else each

    @property
    def metric(self) -> str:
        """What entries are ranked by."""
        return self._config[5]

    @property
    def columns(self) -> dict[str, str]:
        """Types of the bank's own columns by name; "id", "label" and "position" are there beside them."""
        return dict(self._native_snapshot().columns)

    @property
    def version(self) -> int:
        """Number of the version; ascending."""
        return self._native_snapshot().version

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Live entries, int64 `[rows, heads]`."""
        return self._native_snapshot().lengths()

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def __repr__(self) -> str:
        native = self._native_snapshot()
        key, value = (codec or "auto" for codec in native.codecs)
        values = "" if self.value_dim is None else f", value_dim={'key' if self._config[3] else self.value_dim}"
        stored = key if self._config[2] is None else f"{key} keys, {value} values"
        stored += f", {self._config[8]} scans" if self._config[8] else ""
        return (
            f"<{type(self).__name__}: {len(self)} entries, rows={native.rows}, heads={self.heads}, "
            f"key_dim={self.key_dim}{values}, metric={self.metric}, {stored}, {native.nbytes:,} bytes>"
        )

    def __reduce__(self) -> NoReturn:
        raise Unsupported(f"a {type(self).__name__} cannot be pickled: save(path) keeps it, mnemex.open reads it back")

    def stats(self) -> Stats:
        """Count what is there and what it costs; looks at every block."""
        native, staged = self._native_snapshot(), self._staged_nbytes()
        blocks, block_rows, dead, key, value, nbytes, commits, evictions, touches, mass = native.stats()
        codecs, live = native.codecs, native.lengths()
        has_values = self._config[2] is not None
        entries, capacity = int(live.sum()), self.capacity
        room = None if capacity is None else int(np.broadcast_to(capacity, live.shape).sum())
        return Stats(
            rows=native.rows,
            heads=self.heads,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            metric=self.metric,
            evict=self._config[6],
            key_codec=codecs[0],
            value_codec=codecs[1] if has_values else None,
            scan_codec=self._config[8],
            entries=entries,
            live_min=int(live.min()) if live.size else 0,
            live_median=float(np.median(live)) if live.size else 0.0,
            live_max=int(live.max(initial=0)),
            capacity=capacity,
            used=None if room is None else entries / room if room else 0.0,
            key_bytes=key,
            value_bytes=value,
            side_bytes=nbytes - key - value,
            staged_bytes=staged,
            nbytes=nbytes + staged,
            blocks=blocks,
            dead=dead / block_rows if block_rows else 0.0,
            version=native.version,
            commits=commits,
            evictions=evictions,
            touches=touches,
            mass=mass,
        )

    def _staged_nbytes(self) -> int:
        return 0

    @property
    def _one_lane(self) -> bool:
        return self.heads == 1 and self.rows == 1
