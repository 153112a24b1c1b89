"""What is measured: a task, its shape, its data, and how much of a run it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal[
    "call", "search", "attend", "attend all", "write", "train", "consolidate", "forget",
    "product", "product read", "product train",
]  # fmt: skip
Effort = Literal["quick", "default", "full"]
Dtype = Literal["float32", "bfloat16"]
Isa = Literal["avx512", "avx2"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of one task.

    `lanes` independent key spaces hold `entries` keys (and values) of `dim` dimensions each, and are asked
    `queries` queries each for the best `k`; `k` is None where every entry counts. Writes arrive `chunk` entries
    per lane at a time; a training step attends to its `chunk` of local keys too, and writes as many. All numbers are
    values of `dtype`, which says what an engine may keep without loss. With an `isa` every engine is held to that
    instruction set and none wider: "avx512" is without its bfloat16 products, and without AMX.

    To consolidate and to forget, `chunk` tokens arrive in each lane of `entries`, which is full.

    Product keys have heads for lanes: each has `entries` first and as many second halves of keys, of `dim` numbers
    each, and every pair of them is a slot. All heads read one table of values of `value_dim` numbers, a row a slot.
    """

    task: Task
    entries: int
    dim: int
    lanes: int = 1
    queries: int = 0
    k: int | None = None
    chunk: int = 0
    value_dim: int = 0
    data: str = "gaussian"
    dtype: Dtype = "float32"
    isa: Isa | None = None

    @property
    def name(self) -> str:
        """Shape in words, unique among the cases of a task."""
        if self.is_product:
            heads = "1 head" if self.lanes == 1 else f"{self.lanes} heads"
            shape = f"{heads} x {self.entries:,}^2 slots, half keys of {self.dim}, batch {self.queries}, k={self.k}"
            return f"{shape}, values of {self.value_dim}" if self.has_values else shape
        size = f"{self.entries:,} x {self.dim}"
        if self.is_write:
            return f"{self.lanes} lanes x {size}, {self.chunk} at a time"
        k = "all" if self.k is None else f"k={self.k}"
        shape = (
            f"{size}, batch {self.queries}"
            if self.lanes == 1
            else f"{self.lanes} lanes x {size}, {self.queries} queries"
        )
        parts = [shape, k]
        if self.data != "gaussian":
            parts.append(self.data)
        if self.dtype == "bfloat16":
            parts.append("bf16")
        if self.isa is not None:
            parts.append(f"all held to {self.isa}")
        return ", ".join(parts)

    @property
    def has_values(self) -> bool:
        """Whether entries carry a value beside the key."""
        return self.task in (
            *("attend", "attend all", "write", "train", "consolidate", "forget"),
            *("product read", "product train"),
        )

    @property
    def is_write(self) -> bool:
        """Whether what is measured is writing."""
        return self.task in ("write", "consolidate", "forget")

    @property
    def is_product(self) -> bool:
        """Whether what is found are pairs of half keys."""
        return self.task.startswith("product")

    @property
    def slots(self) -> int:
        """How many there are of what a query of one lane may find."""
        return self.entries**2 if self.is_product else self.entries

    @property
    def number_bytes(self) -> int:
        """Bytes of one number of a key or value."""
        return 4 if self.dtype == "float32" else 2

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values in float32."""
        if self.is_product:
            return 4 * (2 * self.lanes * self.entries * self.dim + self.slots * self.value_dim)
        return 4 * self.lanes * self.entries * self.dim * (2 if self.has_values else 1)


QUICK = (
    Case(task="call", entries=1, dim=4, queries=1, k=1),
    Case(task="search", entries=2_048, dim=32, queries=64, k=8),
    Case(task="search", entries=2_048, dim=32, queries=4, k=8, isa="avx2"),
    Case(task="attend", lanes=4, entries=512, dim=32, queries=8, k=8, data="shifted"),
    Case(task="attend", lanes=4, entries=512, dim=32, queries=1, k=8, dtype="bfloat16"),
    Case(task="attend all", lanes=4, entries=512, dim=32, queries=8, dtype="bfloat16"),
    Case(task="write", lanes=4, entries=512, dim=32, chunk=128),
    Case(task="train", lanes=2, entries=512, dim=32, queries=64, k=8, chunk=64, data="shifted"),
    Case(task="consolidate", lanes=2, entries=512, dim=32, chunk=64, data="clustered"),
    Case(task="forget", lanes=2, entries=512, dim=32, chunk=64),
    Case(task="product", entries=64, dim=16, queries=32, k=8),
    Case(task="product read", lanes=2, entries=64, dim=16, queries=32, k=8, value_dim=32),
    Case(task="product train", lanes=2, entries=64, dim=16, queries=32, k=8, value_dim=32),
)

DEFAULT = (
    Case(task="call", entries=1, dim=4, queries=1, k=1),
    Case(task="search", entries=65_536, dim=128, queries=1024, k=32),
    Case(task="search", entries=65_536, dim=128, queries=1024, k=32, isa="avx512"),
    Case(task="search", entries=65_536, dim=128, queries=1024, k=32, isa="avx2"),
    Case(task="search", entries=65_536, dim=64, queries=1024, k=32),
    Case(task="search", entries=16_384, dim=64, queries=128, k=32),
    Case(task="search", entries=65_536, dim=128, queries=32, k=32),
    Case(task="search", entries=4_096, dim=64, queries=1, k=32),
    Case(task="search", entries=1_048_576, dim=128, queries=32, k=32),
    Case(task="search", entries=1_048_576, dim=128, queries=1, k=32),
    Case(task="attend", lanes=64, entries=16_384, dim=64, queries=128, k=32),
    Case(task="attend", lanes=64, entries=4_096, dim=64, queries=128, k=32, data="shifted"),
    Case(task="attend", lanes=512, entries=4_096, dim=64, queries=1, k=32),
    Case(task="attend", lanes=32, entries=65_536, dim=128, queries=1, k=32),
    Case(task="attend", lanes=32, entries=65_536, dim=128, queries=1, k=32, dtype="bfloat16"),
    Case(task="attend all", lanes=64, entries=4_096, dim=64, queries=128),
    Case(task="attend all", lanes=64, entries=4_096, dim=64, queries=128, dtype="bfloat16"),
    Case(task="attend all", lanes=32, entries=16_384, dim=128, queries=1),
    Case(task="attend all", lanes=32, entries=16_384, dim=128, queries=1, dtype="bfloat16"),
    Case(task="write", lanes=64, entries=16_384, dim=64, chunk=512),
    Case(task="write", lanes=64, entries=512, dim=64, chunk=1),
    Case(task="train", lanes=8, entries=65_536, dim=64, queries=512, k=32, chunk=512, data="shifted"),
    Case(task="consolidate", lanes=64, entries=4_096, dim=64, chunk=256, data="clustered"),
    Case(task="forget", lanes=64, entries=4_096, dim=64, chunk=256),
    Case(task="forget", lanes=64, entries=4_096, dim=64, chunk=1),
    Case(task="product", entries=1_024, dim=64, queries=256, k=32),
    Case(task="product read", lanes=4, entries=512, dim=64, queries=256, k=32, value_dim=256),
    Case(task="product train", lanes=4, entries=512, dim=64, queries=256, k=32, value_dim=256),
)

FULL = (
    *DEFAULT,
    Case(task="search", entries=1_048_576, dim=128, queries=1024, k=32),
    Case(task="search", entries=65_536, dim=64, queries=1024, k=32, isa="avx512"),
    Case(task="search", entries=65_536, dim=64, queries=1024, k=32, isa="avx2"),
    Case(task="attend", lanes=64, entries=16_384, dim=64, queries=128, k=32, data="shifted"),
    Case(task="attend", lanes=32, entries=16_384, dim=128, queries=1, k=32),
    Case(task="attend all", lanes=64, entries=16_384, dim=64, queries=128),
)

CASES: dict[Effort, tuple[Case, ...]] = {"quick": QUICK, "default": DEFAULT, "full": FULL}
