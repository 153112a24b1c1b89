"""The bank: the key/value memory of one attention layer, and its snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from mnemex import _arguments as arguments
from mnemex import _columns, parts
from mnemex import capacity as _capacity
from mnemex._arrays import vectors
from mnemex._native import NativeBank, NativeSnapshot
from mnemex.consolidate import WRITES, Write, write_options
from mnemex.errors import ArgumentError, ShapeError
from mnemex.evict import EVICTS, Evict, evict_options
from mnemex.pages import with_pages
from mnemex.policy import Policy, is_policy, native_policy
from mnemex.reads import Reads
from mnemex.writes import Writes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mnemex._arrays import ArrayLike, IntsLike


class Snapshot(Reads):
    """A frozen version of a bank: the same reads, no writes. Costs nothing to take."""

    def __init__(self, native: NativeSnapshot, bank: Bank) -> None:
        self._frozen = native
        self._adopt(bank)

    def _native_snapshot(self) -> NativeSnapshot:
        return self._frozen

    @property
    def nbytes(self) -> int:
        """Bytes of memory, what is shared counted once."""
        return self._frozen.nbytes

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def copy(self) -> Bank:
        """Make an independent bank that shares every block until one side writes."""
        return Bank._of(self._frozen.copy(), threads=self._threads)


class Bank(Writes):
    """Keys and values in `rows x heads` independent lanes, searched exactly.

    Parameters
    ----------
    rows, heads
        A row is a sequence, document or user; a head is a key/value head.
    key_dim
        Numbers per key.
    value_dim
        Numbers per value; None: no values; "key": the key is the value.
    capacity
        Live entries per lane at most: a number, or a list with one for each head; None: no limit.
    metric
        "dot", "cos" or "l2" (minus the squared distance): larger is nearer.
    key_codec, value_codec
        "f32", "f16", "bf16", or "auto": the first write's type, bit for bit.
    scan_codec
        None: the first pass of a search reads the keys themselves. "int8": where queries are few
        it reads a smaller copy of them, a byte for each number: a quarter more memory than float32 keys take, the same
        answers, sooner where memory sets the pace. For metric "dot" and "cos".
    index
        "flat": every entry is looked at.
    write
        "append": every token becomes an entry. `Consolidate(threshold=0.9)`: what is near an entry is merged into it.
        `MergeAdjacent(2, segment=18)`: neighbours that are alike are. `Cluster(delta=0.5)`: clusters, and samples of
        them. `Pages(size=128)`: entries stand in pages, which `Blocks` reads whole.
        An object of yours with `plan` is asked for every commit: see `Policy`.
    evict
        Who goes from a full lane: "fifo": the oldest; "oldest_age", "lru", "lfu", "attention_mass", "retention",
        "random", "reservoir", or a part such as `Lru(sinks=4)` or `MinScore(column="surprise")`. "error": a write
        beyond the capacity is refused. An object of yours with `plan`, where `write` is "append": the same as `write=`
        of it, but it has to make room by itself, and a commit for which it did not is refused.
    columns
        Numbers that entries have beside id, label and position: "float32", "int64" or "bool" by name, as in
        `{"prior": "float32"}`; an entry that is given none has 0, or False.
    nonfinite
        "raise": NaN and infinity are refused; "keep": they are stored, and a NaN score is never returned; "skip": such
        tokens are left unwritten.
    threads
        Threads per call; None: what `MNEMEX_NUM_THREADS`, the affinity mask and the cgroup allow.
    path
        None: the bank lives in memory. `save` and `mnemex.open` keep it and bring it back.
    seed
        A whole number, for parts that draw random numbers.

    Raises
    ------
    ArgumentError, DtypeError
        A bank that cannot be.
    ResourceError
        `MNEMEX_ISA` names an instruction set that this machine lacks.

    Examples
    --------
    >>> import numpy as np, mnemex as mx
    >>> rng = np.random.default_rng(0)
    >>> keys, values = rng.standard_normal((2, 1, 8, 1000, 64), np.float32)
    >>> bank = mx.Bank(heads=8, key_dim=64, value_dim=64)
    >>> bank.write(keys, values).evicted
    0
    >>> queries = rng.standard_normal((1, 8, 5, 64), np.float32)
    >>> scores, ids = bank.search(queries, 16)
    >>> ids.shape
    (1, 8, 5, 16)
    >>> out, lse = bank.attend(queries, 16)
    >>> out.shape, lse.shape
    ((1, 8, 5, 64), (1, 8, 5))
    """

    def __init__(
        self,
        *,
        key_dim: int,
        rows: int = 1,
        heads: int = 1,
        value_dim: int | Literal["key"] | None = None,
        capacity: int | Sequence[int] | None = None,
        metric: str = "dot",
        key_codec: str | parts.Codec = "auto",
        value_codec: str | parts.Codec = "auto",
        scan_codec: str | None = None,
        index: str | parts.Flat = "flat",
        write: str | Write | Policy = "append",
        evict: str | Evict | Policy = "fifo",
        columns: Mapping[str, str] | None = None,
        path: None = None,
        nonfinite: str = "raise",
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        if path is not None:
            raise ArgumentError(f"path={path!r} must be None: save(path) keeps a bank, mnemex.open(path) reads it back")
        if isinstance(value_dim, str) and value_dim != "key":
            raise ArgumentError(f"value_dim={value_dim!r} must be a number, 'key' or None")
        arguments.part("index", index, parts.INDEXES)
        policy: object = write if is_policy(write) else None
        if is_policy(evict):
            if arguments.part("write", write, WRITES) != "append":
                raise ArgumentError("evict is an object with plan, which decides what is written too: leave write= out")
            policy, evict = evict, "error"
        entries = _capacity.of_heads(capacity, arguments.count("heads", heads))
        native = NativeBank(
            rows=arguments.count("rows", rows, low=0),
            heads=arguments.count("heads", heads),
            key_dim=arguments.count("key_dim", key_dim),
            value_dim=None if value_dim in (None, "key") else arguments.count("value_dim", value_dim),
            key_is_value=value_dim == "key",
            capacity=entries,
            metric=arguments.word("metric", metric, ("dot", "cos", "l2")),
            key_codec=_codec("key_codec", key_codec),
            value_codec=_codec("value_codec", value_codec),
            scan_codec=None if scan_codec is None else arguments.word("scan_codec", scan_codec, ("int8",)),
            write="append" if policy is not None else arguments.part("write", write, WRITES),
            write_options=write_options(write, seed=arguments.count("seed", seed, low=0)),
            evict="error" if isinstance(evict, str) and evict == "error" else arguments.part("evict", evict, EVICTS),
            evict_options=evict_options(evict, seed=arguments.count("seed", seed, low=0)),
            nonfinite=arguments.word("nonfinite", nonfinite, arguments.NONFINITE),
            columns=with_pages(write, _columns.declared(columns)),
            policy=None if policy is None else native_policy(policy, entries),
        )
        self._open(native, threads)

    def _open(self, native: NativeBank, threads: int | None) -> None:
        self._native = native
        self._describe(native.config, arguments.optional_count("threads", threads))

    @classmethod
    def _of(cls, native: NativeBank, *, threads: int | None = None) -> Self:
        """Wrap a native bank, as opening a file or copying makes one."""
        bank = cls.__new__(cls)
        bank._open(native, threads)
        return bank

    def _with_policy(self, policy: object) -> Bank:
        """Go on with a policy that a file could not hold."""
        name, planned, here = self._native.policy
        if not planned or here:
            raise ArgumentError(
                f"write, evict: the bank was saved with the write policy {name!r}, which needs no object"
            )
        return Bank._of(self._native.with_policy(native_policy(policy, self.capacity)), threads=self._threads)

    def _native_snapshot(self) -> NativeSnapshot:
        return self._native.snapshot()

    @property
    def nbytes(self) -> int:
        """Bytes of memory, staged tokens included, what is shared counted once."""
        return self._native.nbytes

    def _staged_nbytes(self) -> int:
        return self._native.staged_nbytes

    @property
    def wants_use(self) -> bool:
        """Whether the evict policy goes by the use of entries, which `touch` tells; adapters that write tell it."""
        return self._native.wants_use

    # ------------------------------------------------------------------ versions

    def snapshot(self) -> Snapshot:
        """Freeze the version as it is."""
        return Snapshot(self._native.snapshot(), self)

    def copy(self) -> Bank:
        """Make an independent bank that shares every block until one side writes."""
        return self.snapshot().copy()

    def __copy__(self) -> Bank:
        return self.copy()

    def __deepcopy__(self, memo: object) -> Bank:
        return self.copy()

    def refresh(self) -> None:
        """See what another process has published since; a bank in memory has no other writer and is as it was."""

    def train(self, keys: ArrayLike, values: ArrayLike | None = None, queries: ArrayLike | None = None) -> None:
        """Fit what the bank's parts learn from examples, before anything is written.

        Flat indexes and plain codecs learn nothing: for a bank of these, the examples are checked and the bank is as it
        was, so that code written for any bank runs with every bank.

        Parameters
        ----------
        keys, values, queries
            Examples, shaped as for `stage` and `search`; any number of tokens.

        Raises
        ------
        ShapeError, DtypeError
            Examples that the bank could not hold.
        """
        for name, given, dim in (
            ("keys", keys, self.key_dim),
            ("values", values, self.value_dim),
            ("queries", queries, self.key_dim),
        ):
            if given is None:
                continue
            array, _ = vectors(name, given, one_lane=self._one_lane)
            if dim is None:
                raise ArgumentError(f"{name} were given to a bank that stores none: make it with value_dim=")
            if array.shape[-1] != dim:
                raise ShapeError(f"{name} have {array.shape[-1]} numbers each; expected {dim}")

    # ------------------------------------------------------------------ changes at once

    def delete(self, ids: IntsLike | None = None, labels: IntsLike | None = None, rows: IntsLike | None = None) -> None:
        """End entries by id, by label, or both, in the named rows or in all.

        What is not there is passed over. Staged tokens stay. Label -1, of entries that were given none, names nothing.
        Where the write policy merges, an entry ends with all that was merged into it.
        """
        gone, named = arguments.ended(ids, labels)
        self._native.delete(gone, named, arguments.rows("rows", rows, self.rows))

    def truncate(self, end: int | IntsLike, rows: IntsLike | None = None) -> None:
        """Keep ids below `end`, one number or one per row, in the named rows or in all.

        Raises
        ------
        StateError
            Tokens are staged.
        """
        self._native.truncate(arguments.ends("end", end), arguments.rows("rows", rows, self.rows))

    def reset(self, rows: IntsLike | None = None) -> None:
        """Empty the named rows, or all; ids go on.

        Raises
        ------
        StateError
            Tokens are staged.
        """
        self._native.reset(arguments.rows("rows", rows, self.rows))

    def reorder(self, index: IntsLike) -> None:
        """Make row i a copy of row `index[i]`, with its ids and history; any length.

        Raises
        ------
        StateError
            Tokens are staged.
        """
        self._native.reorder(arguments.index(index, self.rows))

    def fork(self, repeats: int) -> None:
        """Repeat each row in place; copies share memory until they differ.

        Raises
        ------
        StateError
            Tokens are staged.
        """
        self._native.fork(arguments.count("repeats", repeats))


def _codec(name: str, codec: str | parts.Codec) -> str | None:
    if isinstance(codec, str) and codec == "auto":
        return None
    return arguments.part(name, codec, parts.CODECS)
