"""
Native part of mnemex; use the `mnemex` package.
"""

from _typeshed import Incomplete, SupportsGetItem
from typing import Any, SupportsFloat, SupportsIndex, final

__all__ = ["NativeBank", "NativeIngest", "NativeSnapshot", "commit_all", "isa", "isas", "max_threads", "open", "save", "stream", "stream_schema"]

@final
class NativeBank:
    """
    The key/value memory of one attention layer.
    """
    def __new__(cls, /, *, rows: SupportsIndex, heads: SupportsIndex, key_dim: SupportsIndex, value_dim: SupportsIndex | None, key_is_value: bool, capacity: SupportsIndex | None, metric: str, key_codec: str | None, value_codec: str | None, evict: str, nonfinite: str) -> NativeBank: ...
    def commit(self, /, threads: SupportsIndex | None) -> tuple[int, list[Incomplete], int]:
        """
        Publish what is staged.
        """
    @property
    def config(self, /) -> tuple[int, int, int | None, bool, int | None, str, str, str]:
        """
        What the bank is, as the keyword arguments that make it.
        """
    def delete(self, /, ids: Incomplete, rows: Incomplete | None) -> None:
        """
        End entries by id.
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
    def reorder(self, /, index: Incomplete) -> None:
        """
        Row i becomes a copy of row `index[i]`.
        """
    def reset(self, /, rows: Incomplete | None) -> None:
        """
        Empty rows.
        """
    def rollback(self, /) -> None:
        """
        Drop what is staged.
        """
    def snapshot(self, /) -> NativeSnapshot:
        """
        The version as it is.
        """
    def stage(self, /, tokens: tuple[tuple[Incomplete, str], tuple[Incomplete, str] | None, Incomplete | None, Incomplete | None, Incomplete | None, Incomplete | None, str | None], threads: SupportsIndex | None) -> Incomplete:
        """
        Stage tokens; the ids `[rows, T]`.
        """
    def truncate(self, /, ends: Incomplete, rows: Incomplete | None) -> None:
        """
        Keep ids below `ends`: one number, or one per named row.
        """
    def write(self, /, tokens: tuple[tuple[Incomplete, str], tuple[Incomplete, str] | None, Incomplete | None, Incomplete | None, Incomplete | None, Incomplete | None, str | None], threads: SupportsIndex | None) -> tuple[int, list[Incomplete], int]:
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
    def finish(self, /, threads: SupportsIndex | None) -> tuple[int, int, int, int, int, int, int, int]:
        """
        Publish what was not; what was done.
        """

@final
class NativeSnapshot:
    """
    A frozen version of a bank.
    """
    def attend(self, /, queries: tuple[Incomplete, str], k: SupportsIndex | None, rows: Incomplete | None, scale: SupportsFloat | SupportsIndex, softcap: SupportsFloat | SupportsIndex | None, before: Incomplete | None, allowed: Incomplete | None, with_hits: bool, nonfinite: str | None, threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete, tuple[tuple[Incomplete, Incomplete, Incomplete | None, Incomplete], Incomplete] | None]:
        """
        Attention: out, lse and, if asked for, hits and mass.
        """
    @property
    def codecs(self, /) -> tuple[str | None, str | None]:
        """
        Names of the codecs of keys and values; None until the first write decides.
        """
    def copy(self, /) -> NativeBank:
        """
        An independent bank.
        """
    def gather(self, /, rows: Incomplete, heads: Incomplete, ids: Incomplete, threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete | None]:
        """
        Keys and values `[n, dim]` of n places.
        """
    @property
    def id_end(self, /) -> int:
        """
        One past the largest id of any row.
        """
    def lengths(self, /) -> Incomplete:
        """
        Live entries `[rows, heads]`.
        """
    @property
    def nbytes(self, /) -> int:
        """
        Bytes of memory, each shared part counted once.
        """
    @property
    def rows(self, /) -> int:
        """
        Rows.
        """
    def search(self, /, queries: tuple[Incomplete, str], k: SupportsIndex, rows: Incomplete | None, before: Incomplete | None, allowed: Incomplete | None, nonfinite: str | None, threads: SupportsIndex | None) -> tuple[Incomplete, Incomplete, Incomplete | None, Incomplete]:
        """
        The best k: scores, ids, labels (if any entry has one) and the bank row of each query row.
        """
    @property
    def version(self, /) -> int:
        """
        Number of the version.
        """

def commit_all(banks: SupportsGetItem[int, NativeBank], threads: SupportsIndex | None) -> list[tuple[int, list[Incomplete], int]]:
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
