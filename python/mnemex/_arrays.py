"""What counts as an array of vectors: numpy, anything with `__array_interface__`, or `__dlpack__` on the CPU.

Nothing is copied but what has to be: float32 and the half precisions are read in place where their last axis is
contiguous. bfloat16, which numpy lacks, travels as its bits. No framework is imported: a tensor is recognised by the
module that it comes from, which is loaded already.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex

import numpy as np

from mnemex.errors import DtypeError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
    Vectors = tuple[Array, str]


class DLPack(Protocol):
    """A tensor of any framework."""

    def __dlpack__(self) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


class ArrayInterface(Protocol):
    """An array of any library."""

    @property
    def __array_interface__(self) -> dict[str, object]: ...


ArrayLike = DLPack | ArrayInterface
"""Arrays of float32, float16 or bfloat16."""

IntsLike = ArrayInterface | DLPack | list[int] | tuple[int, ...] | range | SupportsIndex

CPU = 1
_FLOATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# By the type itself, native byte order alone: to ask a type for its name takes longer than a small search.
_NATIVE = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16"}


def vectors(name: str, x: ArrayLike, *, one_lane: bool) -> Vectors:
    """View `x` as `[rows, heads, T, dim]`, and name its type "f32", "f16" or "bf16"; halves as their bits."""
    array, dtype = _array(name, x)
    if array.ndim == 2 and one_lane:
        array = array[None, None]
    if array.ndim != 4:
        also = " or [T, dim]" if one_lane else ""
        raise ShapeError(f"{name} have shape {array.shape}; expected [rows, heads, T, dim]{also}")
    if array.itemsize == 2 and array.dtype != np.uint16:
        array = array.view(np.uint16)
    return array, dtype  # type: ignore[return-value]  # one of the three, as `_array` made sure


def any_shape(name: str, x: ArrayLike) -> Vectors:
    """View `x` whatever its shape, and name its type; halves as their bits."""
    array, dtype = _array(name, x)
    return (array.view(np.uint16) if array.itemsize == 2 else array), dtype  # type: ignore[return-value]


def floats(name: str, x: ArrayLike) -> NDArray[np.float32]:
    """View `x` as float32, or widen a half precision."""
    array, dtype = any_shape(name, x)
    if dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.view(np.float16).astype(np.float32) if dtype == "f16" else array  # type: ignore[return-value]


def is_flat(name: str, x: ArrayLike) -> bool:
    """Tell whether `x` is `[T, dim]`, as a bank of one lane takes it. A tensor need not tell its shape."""
    shape = getattr(x, "shape", None)
    return (_array(name, x)[0].ndim if shape is None else len(shape)) == 2


def _array(name: str, x: ArrayLike) -> tuple[NDArray[np.generic], str]:
    if isinstance(x, np.ndarray):
        flags, known = x.flags, _NATIVE.get(x.dtype)
        if known and flags.c_contiguous and flags.aligned:
            return x, known
    array, dtype = _from_tensor(name, x) if not isinstance(x, np.ndarray) else (x, x.dtype.name)
    if dtype not in _FLOATS:
        advice = "cast with .astype(np.float32)" if isinstance(x, np.ndarray) else "cast it first, as .float() does"
        raise DtypeError(f"{name} are {dtype}; expected float32, float16 or bfloat16: {advice}")
    if dtype == "bfloat16":
        array = array.view(np.uint16)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.aligned or (array.ndim and array.shape[-1] > 1 and array.strides[-1] != array.itemsize):
        array = np.require(array.copy(), requirements=["C", "A"])
    return array, _FLOATS[dtype]


def _from_tensor(name: str, x: Any) -> tuple[NDArray[np.generic], str]:  # noqa: ANN401 - whatever the caller has
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.detach()
        if x.device.type != "cpu":
            raise DtypeError(f"{name} are on {x.device}; a bank lives in host memory: pass {name}.cpu()")
        dtype = str(x.dtype).removeprefix("torch.")
        return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x.resolve_neg()).numpy(), dtype
    if hasattr(x, "__array_interface__") or hasattr(x, "__array__"):
        array = np.asarray(x)
        return array, array.dtype.name
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        if x.__dlpack_device__()[0] != CPU:
            raise DtypeError(f"{name} are not on the CPU; a bank lives in host memory: copy them there first")
        try:
            array = np.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError) as error:
            raise DtypeError(f"{name}: numpy cannot take this tensor ({error}); pass numpy's or torch's") from error
        return array, array.dtype.name
    kind = type(x).__name__
    raise DtypeError(
        f"{name} are {kind}; expected an array of float32, float16 or bfloat16, such as numpy's or torch's"
    )
