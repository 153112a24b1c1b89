"""What an engine is, and the settings in which one may run; `benches.roster` lists them.

An engine is a function from a `Problem` to a `Job`. It lives in a module of its own library, which only the process
that measures it imports. A setting is a set of environment variables; it needs a fresh process, and every peer is
tried with each setting that could help it, because only its best is worth comparing with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from benches.cases import Case, Dtype, Isa, Task
    from benches.workloads import Data, Floats

Arithmetic = Literal["f32", "bf16", "int8"]
Answer = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Problem:
    """One case with its data, for so many threads."""

    case: Case
    data: Data
    threads: int

    @property
    def k(self) -> int:
        """How many entries each query asks for."""
        assert self.case.k is not None, f"{self.case.name} has no k"
        return self.case.k

    @property
    def values(self) -> Floats:
        """Values of the entries `[lanes, entries, dim]`, or of the slots `[slots, value_dim]`."""
        assert self.data.values is not None, f"{self.case.name} has no values"
        return self.data.values


class Unavailable(Exception):
    """An engine cannot do a case with the library that is installed; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """How an engine looks at all keys, which sets its limit: what it multiplies, and the bytes it reads per number."""

    arithmetic: Arithmetic = "f32"
    key_bytes: int = 4


F32_SCAN = Scan()
BF16_SCAN = Scan(arithmetic="bf16", key_bytes=2)


@dataclass(frozen=True)
class Job:
    """A prepared engine.

    `run` does the measured work and returns the answer: `ids` and `scores` `[lanes, queries, k]`, or `out`
    `[lanes, queries, dim]`, with `lse` and `ids` where the engine knows them; `keys` and `values` for writes; `out` and
    its gradients `grad_q`, `grad_k`, `grad_v` for training. With product keys `out` is `[1, queries, value_dim]`, and
    training gives what `benches.reference.Truth` names; rows `touched` may come more than once.
    `explain` adds what the measured call does not return, `remark` says what else is worth knowing of it.
    `bytes_per_vector` counts all that the engine keeps per entry, values included.
    """

    run: Callable[[], Answer]
    bytes_per_vector: float
    explain: Callable[[], Answer] | None = None
    remark: Callable[[], str] | None = None
    scan: Scan = F32_SCAN


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Environment variables for a process, and what to call them."""

    name: str
    variables: Mapping[str, str]

    def __and__(self, other: Setting) -> Setting:
        """Both at once."""
        names = [setting.name for setting in (self, other) if setting.variables]
        return Setting(name=", ".join(names) or self.name, variables={**self.variables, **other.variables})


INSTALLED = Setting(name="as installed", variables={})
HUGE_PAGES = Setting(
    name="huge pages, heap kept",
    variables={
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(32 << 30),
    },
)
HELD: Mapping[Isa, Setting] = {
    "avx512": Setting(
        name="held to AVX-512",
        variables={
            "MNEMEX_ISA": "avx512",
            "FAISS_SIMD_LEVEL": "AVX512",
            "OPENBLAS_CORETYPE": "SKYLAKEX",
            "ATEN_CPU_CAPABILITY": "avx512",
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
            "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        },
    ),
    "avx2": Setting(
        name="held to AVX2",
        variables={
            "MNEMEX_ISA": "avx2",
            "FAISS_SIMD_LEVEL": "AVX2",
            "OPENBLAS_CORETYPE": "HASWELL",
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        },
    ),
}
"""Variables that hold every library to an instruction set; each library reads its own."""


def blas(core: str) -> Setting:
    """Tell the OpenBLAS inside faiss which processor to take this one for."""
    return Setting(name=f"OPENBLAS_CORETYPE={core}", variables={"OPENBLAS_CORETYPE": core})


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A named way to do some tasks.

    `module:function` is found in the measuring process. `canonical` engines promise the contract's exact order of
    ids. `ours` is the engine that all others of a task are compared with. `same` is False for an engine that does
    something else and stands in the table for context only; `approximate` for one that rounds more than float32 does.
    `copies` says how often the case's keys and values lie in the memory of its process; `restart` engines take their
    number of threads from the environment alone. `also` names libraries that it needs beside its own. `settings` are
    those that were seen to help it, and `blas` engines of faiss are also tried with other kernels of its OpenBLAS.
    It takes part in cases of its `dtypes`, of its `data` if it names any, and of at most `most_queries` queries; where
    all are held to an instruction set, if it `can_be_held`: if its library can be told so, it needs no product that the
    set lacks, and it is among the fastest there.
    """

    name: str
    library: str
    function: str
    tasks: tuple[Task, ...]
    module: str
    settings: tuple[Setting, ...] = (INSTALLED,)
    ours: bool = False
    canonical: bool = False
    same: bool = True
    approximate: bool = False
    copies: float = 1.5
    restart: bool = False
    also: tuple[str, ...] = ()
    blas: bool = False
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    data: str | None = None
    most_queries: int | None = None
    can_be_held: bool = False

    @property
    def libraries(self) -> tuple[str, ...]:
        """Every library it needs."""
        return (self.library, *self.also)

    @property
    def key(self) -> str:
        """Name of its job in a process."""
        return f"{self.module}:{self.function}"

    def takes(self, case: Case) -> bool:
        """Whether it takes part in a case."""
        return (
            case.task in self.tasks
            and case.dtype in self.dtypes
            and self.data in (None, case.data)
            and (self.most_queries is None or case.queries <= self.most_queries)
            and (case.isa is None or self.can_be_held)
        )
