"""Arrow's many ways to write the same vectors, and what a bank must hold of them."""

from __future__ import annotations

import ctypes

import numpy as np
import pyarrow as pa

import mnemex as mx

DIM = 4


def whole(seed: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
    """Small whole numbers, which every type holds."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


def fixed(x: np.ndarray, nulls: np.ndarray | None = None) -> pa.Array:
    """Vectors `[..., dim]` as nested fixed-size lists; True in `nulls` makes a row null."""
    array = pa.array(np.ascontiguousarray(x).reshape(-1))
    for axis in range(x.ndim - 1, 0, -1):
        mask = pa.array(nulls) if nulls is not None and axis == 1 else None
        array = pa.FixedSizeListArray.from_arrays(array, x.shape[axis], mask=mask)
    return array


def ingested(source: object, **how: object) -> mx.Bank:
    """Make a bank of one lane, without values, of a table's column `k`."""
    bank = mx.Bank(key_dim=DIM)
    bank.ingest(source, key="k", **how)
    return bank


def holds(bank: mx.Bank, keys: np.ndarray, values: np.ndarray | None = None) -> None:
    """Assert that lanes `[rows, heads, n, dim]`, or the one lane `[n, dim]`, are exactly these, under ids from 0."""
    n = keys.shape[-2]
    np.testing.assert_array_equal(bank.lengths, n)
    if n:
        ids = np.arange(n) if keys.ndim == 2 else np.tile(np.arange(n), (len(keys), 1))
        for got, want in zip(bank.gather(ids), (keys, values), strict=True):
            if want is not None:
                np.testing.assert_array_equal(got, want)


class CArray(ctypes.Structure):
    """The C data interface's array, as far as the tests break it."""


CArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.c_void_p),
    ("children", ctypes.POINTER(ctypes.POINTER(CArray))),
]


class Broken:
    """A record batch whose C structure was changed by `breaking` on the way."""

    def __init__(self, batch, breaking):
        self.batch, self.breaking = batch, breaking

    def __arrow_c_array__(self, requested_schema=None):
        schema, array = self.batch.__arrow_c_array__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        self.breaking(CArray.from_address(pointer(array, b"arrow_array")))
        return schema, array
