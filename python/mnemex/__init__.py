"""mnemex: an exact attention memory for any model, in host memory.

Past keys and values go into a `Bank`; `search` finds the best k of every query, exactly and with the same bits on every
machine; `attend` is softmax attention over them, with a log-sum-exp by which `merge` joins it to local attention.
`mnemex.torch` and `mnemex.hf` put it into PyTorch and transformers models, `mnemex.recipes` names published systems;
they load when first named.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mnemex.adjacent import MergeAdjacent
from mnemex.arrow import ArrowTable
from mnemex.bank import Bank, Snapshot
from mnemex.build import BuildInfo, build_info
from mnemex.capacity import pyramid
from mnemex.cluster import Cluster
from mnemex.consolidate import Consolidate
from mnemex.describe import Stats
from mnemex.edits import Edits
from mnemex.errors import (
    ArgumentError,
    CapacityError,
    DtypeError,
    Error,
    ExistsError,
    FormatError,
    IdError,
    MissingDependency,
    NonFinite,
    NotFoundError,
    ResourceError,
    RowError,
    ShapeError,
    StateError,
    Unsupported,
)
from mnemex.evict import AttentionMass, Fifo, Lfu, Lru, MinScore, OldestAge, Random, Reservoir, Retention
from mnemex.files import open  # noqa: A004 - `mnemex.open` is what the reader of a saved bank writes
from mnemex.ingest import IngestReport
from mnemex.memory import Memory, MemorySnapshot, from_cache
from mnemex.merge import merge
from mnemex.pages import Blocks, Pages
from mnemex.parts import BF16, F16, F32, Append, Flat, Shared, Threshold, TopK, Window
from mnemex.policy import Columns, Policy, Staged, Touched
from mnemex.product_keys import ProductKeys, Slots
from mnemex.results import Hits, Partial, Receipt

if TYPE_CHECKING:
    from types import ModuleType

__version__ = version("mnemex")

__all__ = [
    "BF16",
    "F16",
    "F32",
    "Append",
    "ArgumentError",
    "ArrowTable",
    "AttentionMass",
    "Bank",
    "Blocks",
    "BuildInfo",
    "CapacityError",
    "Cluster",
    "Columns",
    "Consolidate",
    "DtypeError",
    "Edits",
    "Error",
    "ExistsError",
    "Fifo",
    "Flat",
    "FormatError",
    "Hits",
    "IdError",
    "IngestReport",
    "Lfu",
    "Lru",
    "Memory",
    "MemorySnapshot",
    "MergeAdjacent",
    "MinScore",
    "MissingDependency",
    "NonFinite",
    "NotFoundError",
    "OldestAge",
    "Pages",
    "Partial",
    "Policy",
    "ProductKeys",
    "Random",
    "Receipt",
    "Reservoir",
    "ResourceError",
    "Retention",
    "RowError",
    "ShapeError",
    "Shared",
    "Slots",
    "Snapshot",
    "Staged",
    "StateError",
    "Stats",
    "Threshold",
    "TopK",
    "Touched",
    "Unsupported",
    "Window",
    "build_info",
    "from_cache",
    "merge",
    "open",
    "pyramid",
]

# What loads when it is first named, and what it cannot load without; recipes ask for their adapter when called.
_ADAPTERS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "hf": ("torch", "transformers"),
    "recipes": (),
    "testing": (),
}


def __getattr__(name: str) -> ModuleType:
    if name not in _ADAPTERS:
        raise AttributeError(f"module 'mnemex' has no attribute {name!r}")
    for needed in _ADAPTERS[name]:
        try:
            import_module(needed)
        except ImportError as error:
            raise MissingDependency(
                f"mnemex.{name} needs {needed}, which cannot be imported ({error}): pip install '.[{name}]' in "
                "mnemex's repository"
            ) from error
    return import_module(f"mnemex.{name}")


def __dir__() -> list[str]:
    here = (name for name, needed in _ADAPTERS.items() if all(map(find_spec, needed)))
    return sorted([*globals(), *here])
