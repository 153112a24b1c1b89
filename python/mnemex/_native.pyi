"""
Native part of mnemex; use the `mnemex` package.
"""

from _typeshed import Incomplete, SupportsGetItem
from typing import Any, SupportsFloat, SupportsIndex, final

__all__ = ["NativeBank", "NativeIngest", "NativeReceipt", "NativeScene", "NativeSnapshot", "bag", "bag_backward", "change_all", "commit_all", "isa", "isas", "max_threads", "open", "product_backward", "product_lookup", "product_read", "save", "stream", "stream_schema"]

@final
class NativeBank:
    """
    The key/value memory of one attention layer.
    """
    def __new__(cls, /, *, rows: SupportsIndex, heads: SupportsIndex, key_dim: SupportsIndex, value_dim: SupportsIndex | None, key_is_value: bool, capacity: SupportsIndex | SupportsGetItem[int, SupportsIndex] | None, metric: str, key_codec: str | None, value_codec: str | None, scan_codec: str | None, write: str, write_options: Incomplete | None, evict: str, evict_options: Incomplete, nonfinite: str, columns: SupportsGetItem[int, tuple[str, str]], policy: tuple[str, bool, Any] | None) -> NativeBank: ...
    def commit(self, /, threads: SupportsIndex | None) -> NativeReceipt:
        """
        Publish what is staged.
        """
    @property
    def config(self, /) -> tuple[int, int, int | None, bool, int | list[int] | None, str, str, str, str | None]:
        """
        What the bank is, as the keyword arguments that make it.
        """
    def delete(self, /, ids: Incomplete, labels: Incomplete, rows: Incomplete | None) -> None:
        """
        End entries by id, and by label.
        """
    def fork(self, /, repeats: SupportsIndex) -> None:
        """
        Repeat each row in place.
        """
    @property
    def has_staged(self, /) -> bool:
        """
        Whether anything is staged.
        """
    @property
    def nbytes(self, /) -> int:
        """
        Bytes of memory, staged tokens included.
        """
    @property
    def policy(self, /) -> tuple[str, bool, bool]:
        """
        Name of the write policy; with whether it is one in Python, and whether that is here.
        """
    def reorder(self, /, index: Incomplete) -> None:
        """
        Row i becomes a copy of row `index[i]`.
        """
    def reset(self, /, rows: Incomplete | None) -> None:
        """
        Empty rows.
        """
    def rollback(self, /, rows: Incomplete | None, ends: Incomplete | None) -> None:
        """
        Drop everything staged; of the named rows, or from `ends` on: one id, or one per row.
        """
    def snapshot(self, /) -> NativeSnapshot:
        """
        The version as it is.
        """
    def stage(self, /, tokens: tuple[tuple[Incomplete, str], tuple[Incomplete, str] | None, Incomplete | None, Incomplete | None, Incomplete | None, str | None, Incomplete | None, str | None, SupportsGetItem[int, tuple[str, Incomplete]], bool], threads: SupportsIndex | None) -> Incomplete:
        """
        Stage tokens; the ids `[rows, T]`.
        """
    @property
    def staged_nbytes(self, /) -> int:
        """
        Bytes of what is staged, and of what finds entries by label.
        """
    def touch(self, /, rows: Incomplete, heads: SupportsIndex, k: SupportsIndex, ids: Incomplete, mass: Incomplete | None) -> None:
        """
        Stage the use of found ids `[rows, heads, T, k]`, which lie in the given bank rows.
        """
    def truncate(self, /, ends: Incomplete, rows: Incomplete | None) -> None:
        """
        Keep ids below `ends`: one number, or one per named row.
        """
    @property
    def wants_use(self, /) -> bool:
        """
        Whether the evict policy makes something of the use of entries.
        """
    def with_policy(self, /, policy: tuple[str, bool, Any]) -> NativeBank:
        """
        The same version, written to as the policy says; its name must be the one that the bank was made with.
        """
    def write(self, /, tokens: tuple[tuple[Incomplete, str], tuple[Incomplete, str] | None, Incomplete | None, Incomplete | None, Incomplete | None, str | None, Incomplete | None, str | None, SupportsGetItem[int, tuple[str, Incomplete]], bool], threads: SupportsIndex | None) -> NativeReceipt:
        """
        Stage tokens and publish what is staged; a failure leaves none of the tokens.
        """

@final
class NativeIngest:
    """
    An ingest under way.
    """
    def __new__(cls, /, bank: NativeBank, names: tuple[str, str | None, str | None, str | None, str | None, str | None, SupportsGetItem[int, tuple[str, str]]], skip_nulls: bool, by_batch: bool, on_duplicate: str | None, batch_bytes: SupportsIndex) -> NativeIngest: ...
    def end_source(self, /, file: str | None) -> None:
        """
        End a file, or the stream.
        """
    def feed(self, /, source: Any, file: str | None, first: SupportsIndex, report: Any | None, threads: SupportsIndex | None) -> int:
        """
        Take in an object with `__arrow_c_stream__` or `__arrow_c_array__` whose first row is row `first` of its source;
        the number of rows. `report` is called after each commit with what was done.
        """
    def finish(self, /, threads: SupportsIndex | None) -> tuple[int, int, int, int, int, int, int, int, int]:
        """
        Publish what was not; what was done.
        """

@final
class NativeReceipt:
    """
    Result of a commit.
    """
    @property
    def evicted(self, /) -> int:
        """
        Entries that the evict policy ended or kept from being written.
        """
    def ids(self, /) -> list[Incomplete]:
        """
        Ids `[rows, T]` of each stage call.
        """
    def landed(self, /) -> list[Incomplete]:
        """
        Where the tokens of each stage call ended, `[rows, heads, T]`.
        """
    @property
    def one_lane(self, /) -> list[bool]:
        """
        Whether each stage call was given one lane.
        """
    @property
    def version(self, /) -> int:
        """
        Number of the version.
        """

@final
class NativeScene:
    """
    What a policy sees of a commit; empty once the commit went on.
    """
    def column(self, /, staged: bool, name: str) -> Incomplete:
        """
        The numbers of entries, or of tokens, in one of the caller's columns.
        """
    @property
    def columns(self, /) -> list[tuple[str, str]]:
        """
        The caller's columns.
        """
    def entries(self, /, name: str) -> Incomplete:
        """
        Something that every entry has.
        """
    @property
    def facts(self, /) -> tuple[int, int, int, int | None, int, int]:
        """
        Number of the version to be, key/value heads, numbers per key and per value, entries, tokens.
        """
    def tokens(self, /, name: str) -> Incomplete:
        """
        Something that every token has.
        """
    def touched(self, /) -> tuple[Incomplete, Incomplete, Incomplete]:
        """
        What was staged of the use of entries: places, times, mass.
        """
    def vectors(self, /, staged: bool, value: bool, places: Incomplete | None) -> Incomplete:
        """
        Keys, or values, of entries or tokens: of all, or at places.
        """

@final
class NativeSnapshot:
    """
    A frozen version of a bank.
    """
    def attend(self, /, queries: tuple[Incomplete, str], reader: tuple[SupportsIndex, SupportsFloat | SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex] | None, rows: Incomplete | None, scale: SupportsFloat | SupportsIndex, softcap: SupportsFloat | SupportsIndex | None, bias: Incomplete | str | None, before: Incomplete | None, allowed: Incomplete | None, predicates: SupportsGetItem[int, tuple[str, str, Incomplete]], with_hits: bool, nonfinite: str | None, threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete, tuple[tuple[Incomplete, Incomplete, Incomplete | None, Incomplete], Incomplete] | None]:
        """
        Attention: out, lse and, if asked for, hits and mass.
        """
    @property
    def codecs(self, /) -> tuple[str | None, str | None]:
        """
        Names of the codecs of keys and values; None until the first write decides.
        """
    def column(self, /, name: str, rows: Incomplete, ids: Incomplete) -> Incomplete:
        """
        The numbers of a column at n places.
        """
    @property
    def columns(self, /) -> list[tuple[str, str]]:
        """
        Names and types of the columns beside id, label and position.
        """
    def copy(self, /) -> NativeBank:
        """
        An independent bank.
        """
    def counts(self, /, rows: Incomplete, heads: Incomplete, ids: Incomplete) -> Incomplete:
        """
        Tokens that the entries at n places stand for.
        """
    def find(self, /, allowed: Incomplete | None, predicates: SupportsGetItem[int, tuple[str, str, Incomplete]], rows: Incomplete | None, threads: SupportsIndex | None) -> list[Incomplete]:
        """
        Ids of the entries of each row that meet every condition.
        """
    def gather(self, /, rows: Incomplete, heads: Incomplete, ids: Incomplete, threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete | None]:
        """
        Keys and values `[n, dim]` of n places.
        """
    def lengths(self, /) -> Incomplete:
        """
        Live entries `[rows, heads]`.
        """
    def log_weights(self, /, rows: Incomplete, heads: Incomplete, ids: Incomplete) -> Incomplete:
        """
        The logarithms of the tokens that the entries at n places weigh in a softmax.
        """
    @property
    def merges(self, /) -> bool:
        """
        Whether the write policy merges tokens into entries, and counts them.
        """
    @property
    def nbytes(self, /) -> int:
        """
        Bytes of memory, each shared part counted once.
        """
    def query_gradient(self, /, queries: tuple[Incomplete, str], rows: Incomplete, ids: Incomplete, grad: Incomplete, delta: Incomplete, lse: Incomplete, scale: SupportsFloat | SupportsIndex, softcap: SupportsFloat | SupportsIndex | None, threads: SupportsIndex | None) -> Incomplete:
        """
        Gradient of queries through the entries that they read: see [`mnemex_core::backward`].
        """
    @property
    def rows(self, /) -> int:
        """
        Rows.
        """
    def search(self, /, queries: tuple[Incomplete, str], reader: tuple[SupportsIndex, SupportsFloat | SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex], rows: Incomplete | None, before: Incomplete | None, allowed: Incomplete | None, predicates: SupportsGetItem[int, tuple[str, str, Incomplete]], nonfinite: str | None, threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete, Incomplete | None, Incomplete]:
        """
        What a reader takes: scores, ids, labels (if any entry has one) and the bank row of each query row.
        """
    def stats(self, /) -> tuple[int, int, int, int, int, int, int, int, int, float]:
        """
        Blocks, rows in them, dead rows of these; bytes of keys, of values, of everything; commits, evictions; touches and
        the mass that they told of.
        """
    def tally(self, /, queries: tuple[Incomplete, str], k: SupportsIndex, threads: SupportsIndex) -> tuple[int, int, float, float]:
        """
        What such a search costs beyond its first pass: entries that passed, canonical scores, and the seconds of all
        threads spent scanning and deciding.
        """
    @property
    def version(self, /) -> int:
        """
        Number of the version.
        """

def bag(values: tuple[Incomplete, str], ids: Incomplete, weights: Incomplete, threads: SupportsIndex | None) -> Incomplete:
    """
    Sums of weighted rows of a table, `[T, dim]`.
    """

def bag_backward(values: tuple[Incomplete, str], ids: Incomplete, weights: Incomplete, grad: Incomplete, threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete, Incomplete]:
    """
    The way back from the gradient of such sums: of the weights, the rows that were read, ascending, and their gradients.
    """

def change_all(banks: SupportsGetItem[int, NativeBank], change: str, *, ids: Incomplete | None = None, labels: Incomplete | None = None, rows: Incomplete | None = None, repeats: SupportsIndex = 1) -> None:
    """
    Change several banks at once, all or none: "delete" (ids, labels, rows), "truncate" (ids as ends, rows), "reset" (rows),
    "reorder" (rows as index), "fork" (repeats), "rollback" (rows, ids as ends).
    """

def commit_all(banks: SupportsGetItem[int, NativeBank], threads: SupportsIndex | None) -> list[NativeReceipt]:
    """
    Publish what is staged in several banks at once.
    """

def isa() -> str:
    """
    Name of the instruction set in use.
    """

def isas() -> list[str]:
    """
    Names of the instruction sets that run here, slowest first.
    """

def max_threads() -> int:
    """
    Most threads that a call uses.
    """

def open(path: str) -> tuple[str, str, list[NativeBank]]:
    """
    Open a folder: kind, metadata as JSON, banks.
    """

def product_backward(rows: Incomplete, columns: Incomplete, queries: Incomplete, ids: Incomplete, grad: Incomplete, threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete, Incomplete]:
    """
    The way back from the gradient of scores `[T, heads, k]`: gradients of queries, rows and columns.
    """

def product_lookup(rows: Incomplete, columns: Incomplete, queries: Incomplete, k: SupportsIndex, threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete]:
    """
    The best k slots: scores and ids `[T, heads, k]`.
    """

def product_read(rows: Incomplete, columns: Incomplete, queries: Incomplete, k: SupportsIndex, values: tuple[Incomplete, str], softmax: bool, scale: SupportsFloat | SupportsIndex, threads: SupportsIndex | None) -> Incomplete:
    """
    Sums of the values of the best k slots of all heads, `[T, dim]`, weighed by scores or by their softmax.
    """

def save(path: str, kind: str, snapshots: SupportsGetItem[int, NativeSnapshot], metadata: str, overwrite: bool) -> None:
    """
    Save versions of banks as one folder; `metadata` is JSON.
    """

def stream(snapshot: NativeSnapshot, requested_schema: Any | None) -> Any:
    """
    A version's live entries as an Arrow C stream.
    """

def stream_schema(snapshot: NativeSnapshot) -> Any:
    """
    The columns of that stream, as an Arrow C schema.
    """
