"""A saved memory gives the same bits in another process: `python -m mnemex.demo.reopen FOLDER` prints their digest."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

import mnemex

if TYPE_CHECKING:
    from pathlib import Path

    from mnemex import Memory

N_QUERIES = 16
K = 32


def digest(memory: Memory) -> str:
    """Return a SHA-256 of what every layer answers to queries drawn from a fixed seed: ids, weights, outputs."""
    answers, rng = hashlib.sha256(), np.random.default_rng(0)
    for layer in memory.layers:
        bank = memory[layer]
        queries = rng.standard_normal((1, bank.heads, N_QUERIES, bank.key_dim), np.float32)
        found = bank.attend(queries, K, hits=True)
        assert found.hits is not None
        assert found.mass is not None
        for array in (found.hits.ids, found.mass, found.out, found.lse):
            answers.update(np.ascontiguousarray(array).tobytes())
    return answers.hexdigest()


def digest_elsewhere(folder: Path) -> str:
    """Return the digest of the memory saved in a folder, taken by a new Python process."""
    done = subprocess.run(
        [sys.executable, "-m", "mnemex.demo.reopen", os.fspath(folder)],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    opened = mnemex.open(sys.argv[1])
    if not isinstance(opened, mnemex.Memory):
        sys.exit(f"{sys.argv[1]} holds a bank, not a memory")
    print(digest(opened))
