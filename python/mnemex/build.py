"""What runs here: the version, the instruction set in use, the threads."""

from __future__ import annotations

from importlib.metadata import version
from typing import NamedTuple

from mnemex import _native


class BuildInfo(NamedTuple):
    """What a bug report should say.

    Attributes
    ----------
    version
        Of mnemex.
    isa
        Instruction set in use: the fastest of `isas`, or what `MNEMEX_ISA` names.
    isas
        Instruction sets that run here, slowest first.
    threads
        Most threads per call: `MNEMEX_NUM_THREADS`, or what the affinity mask and the cgroup allow.
    """

    version: str
    isa: str
    isas: tuple[str, ...]
    threads: int


def build_info() -> BuildInfo:
    """Say what runs here.

    Raises
    ------
    ResourceError
        `MNEMEX_ISA` names an instruction set that this machine lacks.
    """
    return BuildInfo(version("mnemex"), _native.isa(), tuple(_native.isas()), _native.max_threads())
