"""Saves the memory that `test_points.py` opens from every folder here: `python write.py 0.1.0`.

To be run by each release, once, into a folder of its name, and committed; folders of older releases are never written
again. A release that cannot open one of them breaks what its users have saved.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import mnemex as mx


def memory() -> mx.Memory:
    """Make a memory of two banks with labels, positions, columns, gaps and rows of different length."""
    banks = {}
    ids = np.tile(np.arange(70), (2, 1))
    number = np.arange(2)[None, :, None] * 100 + ids[:, None] + np.arange(2)[:, None, None]  # [rows, heads, T]
    for layer, dtype in ((0, np.float32), (3, np.float16)):
        bank = mx.Bank(rows=2, heads=2, key_dim=3, value_dim=2, columns={"page": "int64", "seen": "bool"})
        bank.write(
            np.stack([number, -number, number % 7], -1).astype(dtype),
            np.stack([number % 5, number], -1).astype(dtype),
            labels=1000 + ids,
            positions=2 * ids,
            columns={"page": ids // 8, "seen": ids % 2 == 0},
        )
        bank.delete([7, 8, 9])
        bank.truncate(50, rows=[1])
        banks[layer] = bank
    return mx.Memory(banks, fingerprint="kept", next_position=70, keys="plain")


if __name__ == "__main__":
    memory().save(Path(__file__).parent / sys.argv[1])
