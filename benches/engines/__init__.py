"""Who is measured: every engine, the settings that may suit it, and the tasks it takes part in.

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
    from benches.cases import Case, Task
    from benches.workloads import Data, Floats

Limit = Literal["f32", "bf16"]
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
        """Values of the entries `[lanes, entries, dim]`."""
        assert self.data.values is not None, f"{self.case.name} has no values"
        return self.data.values


@dataclass(frozen=True)
class Job:
    """A prepared engine.

    `run` does the measured work and returns the answer: `ids` and `scores` `[lanes, queries, k]`, or `out`
    `[lanes, queries, dim]`, with `lse` and `ids` where the engine knows them; `keys` and `values` for writes; `out` and
    its gradients `grad_q`, `grad_k`, `grad_v` for training.
    `explain` adds what the measured call does not return. `bytes_per_vector` counts all that the engine keeps per
    entry, values included.
    """

    run: Callable[[], Answer]
    bytes_per_vector: float
    explain: Callable[[], Answer] | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Environment variables for a process, and what to call them."""

    name: str
    variables: Mapping[str, str]


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
AVX512_BLAS = Setting(name="OPENBLAS_CORETYPE=SKYLAKEX", variables={"OPENBLAS_CORETYPE": "SKYLAKEX"})


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A named way to do some tasks.

    `module:function` is found in the measuring process. `canonical` engines promise the contract's exact order of
    ids. `same` is False for an engine that does something else and stands in the table for context only;
    `approximate` for one that rounds more than float32 does. `limit` names the arithmetic it uses, and `copies` how
    often the case's keys and values lie in the memory of its process; `restart` engines take their number of threads
    from the environment alone. `also` names libraries that it needs beside its own. `settings` are those
    that were seen to help it.
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
    limit: Limit = "f32"
    copies: float = 1.5
    restart: bool = False
    also: tuple[str, ...] = ()

    @property
    def libraries(self) -> tuple[str, ...]:
        """Every library it needs."""
        return (self.library, *self.also)

    @property
    def key(self) -> str:
        """Name of its job in a process."""
        return f"{self.module}:{self.function}"


_BOTH = (INSTALLED, HUGE_PAGES)
_OURS, _FAISS, _TORCH = "benches.engines.ours", "benches.engines.faiss_flat", "benches.engines.torch_topk"
_DENSE = "benches.engines.torch_dense"

ENGINES = (
    Engine(
        name="mnemex",
        library="mnemex",
        module=_OURS,
        function="search",
        tasks=("call", "search"),
        ours=True,
        canonical=True,
    ),
    Engine(name="mnemex", library="mnemex", module=_OURS, function="attend", tasks=("attend", "attend all"), ours=True),
    Engine(name="mnemex", library="mnemex", module=_OURS, function="write", tasks=("write",), ours=True),
    Engine(
        name="faiss IndexFlatIP",
        library="faiss",
        module=_FAISS,
        function="search",
        tasks=("call", "search"),
        settings=_BOTH,
    ),
    Engine(
        name="faiss IndexFlatIP, always BLAS",
        library="faiss",
        module=_FAISS,
        function="search_blas",
        tasks=("search",),
        settings=_BOTH,
    ),
    Engine(
        name="usearch exact",
        library="usearch",
        module="benches.engines.usearch_flat",
        function="search",
        tasks=("call", "search"),
    ),
    Engine(
        name="torch matmul + topk",
        library="torch",
        module=_TORCH,
        function="search",
        tasks=("call", "search"),
    ),
    Engine(
        name="torch matmul + topk of block maxima",
        library="torch",
        module=_TORCH,
        function="search_blocks",
        tasks=("search",),
        settings=_BOTH,
    ),
    Engine(
        name="torch bf16 matmul, block maxima, f32 rescoring",
        library="torch",
        module=_TORCH,
        function="search_bf16",
        tasks=("search",),
        settings=(HUGE_PAGES,),
        limit="bf16",
    ),
    Engine(
        name="numpy argpartition",
        library="numpy",
        module="benches.engines.numpy_flat",
        function="search",
        tasks=("call", "search"),
        restart=True,
    ),
    Engine(
        name="torch matmul + topk + gather + softmax",
        library="torch",
        module=_TORCH,
        function="attend",
        tasks=("attend",),
        settings=_BOTH,
    ),
    Engine(
        name="torch lane by lane, topk of block maxima",
        library="torch",
        module=_TORCH,
        function="attend_blocks",
        tasks=("attend",),
        settings=_BOTH,
    ),
    Engine(
        name="torch lane by lane, bf16 matmul, block maxima, f32 rescoring",
        library="torch",
        module=_TORCH,
        function="attend_bf16",
        tasks=("attend",),
        settings=(HUGE_PAGES,),
        limit="bf16",
    ),
    Engine(name="faiss.knn per lane", library="faiss", module=_FAISS, function="attend", tasks=("attend",)),
    Engine(
        name="faiss.knn per lane, always BLAS",
        library="faiss",
        module=_FAISS,
        function="attend_blas",
        tasks=("attend",),
    ),
    Engine(
        name="faiss IVF, a list per lane", library="faiss", module=_FAISS, function="attend_lists", tasks=("attend",)
    ),
    Engine(
        name="torch SDPA f32 over everything",
        library="torch",
        module=_DENSE,
        function="attend",
        tasks=("attend",),
        same=False,
    ),
    Engine(
        name="torch SDPA bf16 over everything",
        library="torch",
        module=_DENSE,
        function="attend_bf16",
        tasks=("attend",),
        same=False,
        approximate=True,
        limit="bf16",
    ),
    Engine(
        name="torch SDPA f32", library="torch", module=_DENSE, function="attend", tasks=("attend all",), settings=_BOTH
    ),
    Engine(
        name="torch SDPA bf16",
        library="torch",
        module=_DENSE,
        function="attend_bf16",
        tasks=("attend all",),
        settings=_BOTH,
        approximate=True,
        limit="bf16",
    ),
    Engine(
        name="torch.cat per chunk",
        library="torch",
        module=_DENSE,
        function="write_cat",
        tasks=("write",),
        settings=_BOTH,
    ),
    Engine(
        name="torch copy into place",
        library="torch",
        module=_DENSE,
        function="write_in_place",
        tasks=("write",),
        settings=_BOTH,
    ),
    Engine(
        name="faiss IndexFlatIP.add, keys only",
        library="faiss",
        module=_FAISS,
        function="write",
        tasks=("write",),
        settings=_BOTH,
        same=False,
    ),
    Engine(
        name="mnemex",
        library="mnemex",
        module=_OURS,
        function="train",
        tasks=("train",),
        ours=True,
        also=("torch",),
    ),
    Engine(
        name="torch lane by lane, topk",
        library="torch",
        module=_TORCH,
        function="train",
        tasks=("train",),
        settings=(HUGE_PAGES,),
    ),
    Engine(
        name="torch lane by lane, topk of block maxima",
        library="torch",
        module=_TORCH,
        function="train_blocks",
        tasks=("train",),
        settings=_BOTH,
    ),
    Engine(
        name="torch lane by lane, bf16 matmul, block maxima, f32 rescoring",
        library="torch",
        module=_TORCH,
        function="train_bf16",
        tasks=("train",),
        settings=_BOTH,
        limit="bf16",
    ),
    Engine(
        name="faiss.knn per head, torch autograd",
        library="faiss",
        module=_FAISS,
        function="train",
        tasks=("train",),
        settings=_BOTH,
        also=("torch",),
    ),
)
