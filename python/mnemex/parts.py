"""The parts a bank is put together from: small frozen objects. A name stands for a part with its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class F32:
    """Codec: IEEE single precision, 4 bytes a number."""

    name: ClassVar[str] = "f32"


@dataclass(frozen=True, slots=True)
class F16:
    """Codec: IEEE half precision, 2 bytes a number; numbers beyond 65504 are refused."""

    name: ClassVar[str] = "f16"


@dataclass(frozen=True, slots=True)
class BF16:
    """Codec: bfloat16, 2 bytes a number, the range of single precision."""

    name: ClassVar[str] = "bf16"


@dataclass(frozen=True, slots=True)
class Flat:
    """Index: one list, looked at whole; exact."""

    name: ClassVar[str] = "flat"


@dataclass(frozen=True, slots=True)
class Append:
    """Write policy: every token becomes an entry."""

    name: ClassVar[str] = "append"


CODECS = {part.name: part for part in (F32, F16, BF16)}
INDEXES = {part.name: part for part in (Flat,)}
Codec = F32 | F16 | BF16
