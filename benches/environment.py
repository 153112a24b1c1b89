"""Where the figures come from: processors, load, versions, and what the peers' libraries chose."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benches.cases import Isa

AVX512_CORES = ("SkylakeX", "Cooperlake", "SapphireRapids")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
PEERS = ("numpy", "faiss-cpu", "usearch", "torch")
QUIET_LOAD = 0.3

_FAISS_BLAS = "import numpy, faiss"
_BF16_PRODUCT = "import torch; a = torch.ones(256, 128, dtype=torch.bfloat16); a @ a.T"


def cpu_name() -> str:
    """Model name with family and model number, as the kernel reports them, and the generation of AMD's cores."""
    fields = _cpu_fields()
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    name = f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"
    core = _amd_core(fields) if fields.get("vendor_id") == "AuthenticAMD" else None
    return name if core is None else f"{name}, {core}"


def _amd_core(fields: dict[str, str]) -> str | None:
    """Name the generation of an AMD core, which "AMD EPYC" does not tell; family 25 is two of them."""
    with_avx512 = "avx512f" in fields.get("flags", "").split()
    return {"23": "Zen to Zen 2", "25": "Zen 4" if with_avx512 else "Zen 3", "26": "Zen 5"}.get(fields["cpu family"])


def cpu_has(flag: str) -> bool:
    """Whether the kernel lists a processor feature."""
    return flag in _cpu_fields().get("flags", "").split()


def features() -> tuple[str, ...]:
    """Instruction sets that decide which kernels run, as the kernel names them."""
    return tuple(flag for flag in FEATURES if cpu_has(flag))


def can_be_held(isa: Isa) -> bool:
    """Whether this processor has an instruction set to which engines may be held."""
    return cpu_has({"avx512": "avx512f", "avx2": "avx2"}[isa])


def _cpu_fields() -> dict[str, str]:
    source = Path("/proc/cpuinfo")
    if not source.exists():
        return {}
    first = source.read_text().split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}


def processors(count: int) -> list[int]:
    """Processors to pin to: the last ones this process may use, one hardware thread per core while there are enough."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(count))
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    cores: dict[str, int] = {}
    for number in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.exists() else str(number), number)
    distinct = list(cores.values())
    return (distinct if len(distinct) >= count else allowed)[:count]


def free_memory() -> float:
    """Bytes that processes may still take without swapping."""
    source = Path("/proc/meminfo")
    if not source.exists():
        return 8 * 2.0**30
    fields = dict(line.split(":") for line in source.read_text().splitlines())
    return 1024.0 * int(fields["MemAvailable"].split()[0])


def load_average() -> float:
    """Runnable processes, mean of the last minute."""
    return os.getloadavg()[0]


def versions() -> dict[str, str]:
    """Version of each peer that is installed."""
    found = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return {name: found[name] for name in PEERS if name in found}


def faiss_blas_core() -> str | None:
    """Kernels that the OpenBLAS inside faiss chose, or None where it does not say."""
    said = _say(_FAISS_BLAS, OPENBLAS_VERBOSE="2")
    cores = [line.removeprefix("Core: ") for line in said.splitlines() if line.startswith("Core: ")]
    return cores[-1] if len(cores) > 1 else None  # the first is numpy's


def torch_bf16_kernel() -> str | None:
    """Name the kernel that oneDNN chose for a bfloat16 product, which tells whether AMX was used."""
    said = _say(_BF16_PRODUCT, ONEDNN_VERBOSE="1")
    calls = [line.split(",") for line in said.splitlines() if ",exec," in line and ",matmul," in line]
    return next((field for field in calls[-1] if ":" in field), None) if calls else None


def other_blas_core(core: str | None) -> str | None:
    """Name a processor whose OpenBLAS kernels may be faster here than those that faiss chose; None for none.

    On some hosts with AVX-512 it falls back to very old kernels. On Zen 4, those for AVX2 were 7 % faster.
    """
    if core is None or not cpu_has("avx512f"):
        return None
    if core.startswith("Zen"):
        return "HASWELL"
    return None if core.startswith(AVX512_CORES) else "SKYLAKEX"


def _say(code: str, **variables: str) -> str:
    """Everything that a fresh interpreter prints while it runs `code`; nothing where the library is missing."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


class Bystanders:
    """Processor time that went to others while some processes of ours were measured."""

    def __init__(self, ours: list[int]) -> None:
        self._ours = {os.getpid(), *ours}
        self._start = self._reading()

    def processors(self, seconds: float) -> float | None:
        """Mean number of processors that others kept busy in the `seconds` since the start; None where unknown."""
        if self._start is None or seconds <= 0:
            return None
        now = self._reading()
        assert now is not None
        (all_before, ours_before), (all_after, ours_after) = self._start, now
        ticks = max(0.0, (all_after - all_before) - (ours_after - ours_before))
        return ticks / os.sysconf("SC_CLK_TCK") / seconds

    def _reading(self) -> tuple[float, float] | None:
        """Ticks of all processors that were not idle, and those of our processes."""
        machine = Path("/proc/stat")
        if not machine.exists():
            return None
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, machine.read_text().split()[1:9])
        ours = 0
        for number in self._ours:
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            ours += int(fields[11]) + int(fields[12])
        return float(user + nice + system + irq + softirq + steal), float(ours)
