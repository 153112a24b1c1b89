"""Named data sets, by seed: the same bits in every process and every run.

`gaussian`: keys and queries are independent standard normal vectors. It costs every exact engine the same and
says nothing about how attention spreads.
`shifted`: keys and queries each have a mean and a decaying spectrum of their own, so that queries are not drawn
like the keys, and logits vary enough for the best few entries to hold most of the softmax, as in a language
model. Synthetic all the same.
`clustered`: what arrives in a lane is half new, half close to an entry each (the cosine is about 0.98).
A case in bfloat16 has the numbers drawn in float32, rounded.
Half keys of product keys have length 1: scores then spread as those of a layer do, and the largest inner product is
the shortest distance, which is all that some engines know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pathlib import Path

    from benches.cases import Case

Floats = npt.NDArray[np.float32]

SEED = 20_261_124


@dataclass(frozen=True)
class Data:
    """Arrays of one case: keys and values `[lanes, entries, dim]`, queries `[lanes, queries, dim]`.

    Where full lanes are written to, queries are the keys that arrive, and the last values come with them.
    Product keys have keys `[lanes, 2 entries, dim]`, all first halves and then all second ones, queries
    `[lanes, queries, 2 dim]`, and values `[slots, value_dim]`: slot i * entries + j is first half i and second half j.
    All are float32 for every `dtype` of a case: each engine makes of them what it keeps.
    """

    keys: Floats
    values: Floats | None
    queries: Floats

    def save(self, folder: Path) -> None:
        """Write one .npy file per array into `folder`, from which `load` reads in another process."""
        for name, array in (("keys", self.keys), ("values", self.values), ("queries", self.queries)):
            if array is not None:
                np.save(folder / f"{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Data:
        """Read the arrays of a folder into memory of this process."""
        values = folder / "values.npy"
        return cls(
            keys=np.load(folder / "keys.npy", allow_pickle=False),
            values=np.load(values, allow_pickle=False) if values.exists() else None,
            queries=np.load(folder / "queries.npy", allow_pickle=False),
        )


def make(case: Case) -> Data:
    """Draw the data of a case."""
    generator = np.random.default_rng((SEED, case.lanes, case.entries, case.dim, case.queries))
    parts = 2 if case.is_product else 1
    keys = generator.standard_normal((case.lanes, parts * case.entries, case.dim), dtype=np.float32)
    n_queries = case.chunk if case.is_write else case.queries
    queries = generator.standard_normal((case.lanes, n_queries, parts * case.dim), dtype=np.float32)
    if case.is_product:
        keys /= np.linalg.norm(keys, axis=2, keepdims=True)
    if case.data == "shifted":
        keys, queries = _shifted(keys, 1.0, generator), _shifted(queries, 3.0, generator)
    elif case.data == "clustered":
        near = case.chunk // 2
        queries[:, :near] = keys[:, :near] + np.float32(0.2) * queries[:, :near]
    elif case.data != "gaussian":
        raise ValueError(f"no data set is called {case.data!r}; there are 'gaussian', 'shifted' and 'clustered'")
    values = None
    if case.has_values:
        shape = (case.slots, case.value_dim) if case.is_product else (case.lanes, case.entries, case.dim)
        values = generator.standard_normal(shape, dtype=np.float32)
    if case.dtype == "bfloat16":
        for array in (keys, queries, *([] if values is None else [values])):
            for lane in array:
                round_to_bfloat16(lane)
    return Data(keys=keys, values=values, queries=queries)


class Arrivals:
    """What arrives in full lanes, run after run: keys and values `[lanes, chunk, dim]`.

    The second half of the keys is turned to other directions each time, by signs of the dimensions; the first half
    stays close to the entries that it is close to, as does what recurs in a text. The first run has them as drawn.
    """

    def __init__(self, case: Case, data: Data) -> None:
        assert data.values is not None
        self._keys, self._values = data.queries.copy(), np.ascontiguousarray(data.values[:, -case.chunk :])
        self._fresh = data.queries[:, case.chunk // 2 :]
        self._generator = np.random.default_rng(SEED)
        self._runs = 0

    def next(self) -> tuple[Floats, Floats]:
        """Return the same arrays each time, with other keys in them."""
        if self._runs:
            signs = self._generator.choice(np.array([-1, 1], np.float32), self._fresh.shape[-1])
            np.multiply(self._fresh, signs, out=self._keys[:, -self._fresh.shape[1] :])
        self._runs += 1
        return self._keys, self._values


def keys_of(case: Case, data: Data, lane: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Keys of some entries of a lane; the key of a slot is both of its halves, end to end."""
    keys = data.keys[lane]
    if not case.is_product:
        return keys[ids].astype(np.float64)
    halves = keys[ids // case.entries], keys[case.entries + ids % case.entries]
    return np.concatenate(halves, axis=-1, dtype=np.float64)


def round_to_bfloat16(numbers: Floats) -> None:
    """Round finite numbers in place to the nearest that bfloat16 has, ties to the even one: the upper 16 bits stay."""
    bits = numbers.view(np.uint32)
    bits += 0x7FFF + (bits >> 16 & 1)
    bits &= 0xFFFF_0000


def _shifted(normal: Floats, scale: float, generator: np.random.Generator) -> Floats:
    """Give normal vectors a spectrum j ** -1/2 in random order of the dimensions, and a mean, per lane."""
    lanes, _, dim = normal.shape
    spectrum = np.arange(1, dim + 1, dtype=np.float32) ** np.float32(-0.5)
    spectrum *= np.float32(scale) / np.sqrt(np.mean(spectrum**2))
    order = generator.permuted(np.tile(spectrum, (lanes, 1)), axis=1)
    mean = generator.standard_normal((lanes, 1, dim), dtype=np.float32)
    normal *= order[:, None, :]
    normal += mean
    return normal
