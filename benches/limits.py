"""What the hardware would allow: the calibration, and for each case the time that it sets as the limit.

The limit is the larger of two times. Compute: operations at the calibrated rate of a loop that loads its operands and
stores its sums, in the arithmetic that the engine uses to look at all keys: float32 multiply-adds; products of bfloat16
in AMX where the processor has it, else in AVX-512; of int8 likewise. Bytes: what is really read, keys in the form in
which they are looked at, at the calibrated rate for so many bytes. What follows the first look (values, gradients) is
float32. A share of the limit is limit / measured time; it says which of the two binds.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benches import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benches.cases import Case
    from benches.engines import Arithmetic, Scan

RATES: Mapping[Arithmetic, tuple[str, ...]] = {
    "f32": (),
    "bf16": ("amx_bf16", "avx512_bf16"),
    "int8": ("amx_int8", "avx512_vnni"),
}
"""Rates of each arithmetic, fastest first; a processor that has none of them does it in float32."""

ROOT = Path(__file__).parent.parent
MANIFEST = Path(__file__).parent / "calibrate" / "Cargo.toml"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One calibrated rate: `value` in `unit` for `threads` threads, over `bytes` bytes where memory is read."""

    metric: str
    isa: str
    threads: int
    bytes: int | None
    value: float
    unit: str


def calibrate(*, quick: bool) -> tuple[Rate, ...]:
    """Build the calibration program and run it on the processors that the cases will use.

    Raises
    ------
    RuntimeError
        If cargo is missing or the program does not build or run.
    """
    command = ["cargo", "run", "--quiet", "--release", "--locked", "--manifest-path", str(MANIFEST)]
    command += ["--target-dir", str(ROOT / "target" / "benches"), "--"]
    command += ["--rounds", "1", "--milliseconds", "5"] if quick else []
    pinned = environment.processors(2)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=lambda: _pin(pinned))
    except FileNotFoundError as missing:
        raise RuntimeError("the calibration needs cargo on the PATH: install a stable Rust toolchain") from missing
    if done.returncode != 0:
        raise RuntimeError(f"the calibration failed:\n{done.stderr.strip()}")
    return tuple(Rate(**json.loads(line)) for line in done.stdout.splitlines())


def best_of(first: Sequence[Rate], second: Sequence[Rate]) -> tuple[Rate, ...]:
    """Take the larger of two calibrations, rate by rate: whatever disturbs one can only make it slower."""
    return tuple(max(pair, key=lambda rate: rate.value) for pair in zip(first, second, strict=True))


def _pin(numbers: list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, numbers)


@dataclass(frozen=True)
class Limit:
    """Time of a case at the limit, and what binds there."""

    seconds: float
    binds: str


@dataclass(frozen=True)
class Limits:
    """Calibrated rates, and the limits that follow from them."""

    rates: tuple[Rate, ...]

    def limit(self, case: Case, *, threads: int, scan: Scan) -> Limit | None:
        """Limit of a case for an engine that looks at the keys so; None where none is defined."""
        if case.task in ("call", "forget"):
            return None
        if case.task == "consolidate":  # to find the nearest entry of each token
            case = replace(case, queries=case.chunk, k=1)
        if case.task == "write":
            size = case.nbytes * case.number_bytes / 4
            return Limit(2 * size / self._rate("copy", threads), "copies")
        looking, rest = _operations(case)
        name = next((name for name in RATES[scan.arithmetic] if self._find(f"{name}_loads_stores", threads)), None)
        float32 = self._float32(case, threads)
        fast = float32 if name is None else self._rate(f"{name}_loads_stores", threads)
        compute = looking / fast + rest / (fast if case.k is None else float32)
        size = _bytes(case, key_bytes=scan.key_bytes)
        reading = size / self._read(size, threads)
        if compute >= reading:
            return Limit(compute, f"{name or 'f32'} products".replace("_", " "))
        return Limit(reading, f"reads, {scan.key_bytes} bytes a number")

    def _float32(self, case: Case, threads: int) -> float:
        """Rate of float32 in the widest instruction set that the case allows."""
        held = case.isa == "avx2" and self._find("avx2_f32_loads_stores", threads)
        return self._rate("avx2_f32_loads_stores" if held else "fma_f32_loads_stores", threads)

    def _find(self, metric: str, threads: int) -> list[Rate]:
        return [rate for rate in self.rates if rate.metric == metric and rate.threads == threads]

    def _rate(self, metric: str, threads: int) -> float:
        """Operations or bytes per second."""
        return 1e9 * self._find(metric, threads)[0].value

    def _read(self, size: float, threads: int) -> float:
        """Bytes per second of reading `size` bytes again and again, between the calibrated sizes by logarithm."""
        known = sorted((rate.bytes, 1e9 * rate.value) for rate in self._find("read", threads) if rate.bytes is not None)
        for (small, fast), (large, slow) in itertools.pairwise(known):
            if size <= small:
                return fast
            if size < large:
                part = math.log(size / small) / math.log(large / small)
                return fast * math.exp(part * math.log(slow / fast))
        return known[-1][1]


def _operations(case: Case) -> tuple[float, float]:
    """Operations of looking at all keys, and of all that follows."""
    scores = 2.0 * case.lanes * case.queries * case.entries * case.dim * (2 if case.is_product else 1)
    if not case.has_values:
        return scores, 0.0
    weighted = case.entries if case.k is None else case.k
    if case.is_product:
        # Forward its value. Backward the gradients of its weight, its value, and both halves of key and query.
        numbers = case.value_dim if case.task == "product read" else 3 * case.value_dim + 4 * case.dim
        return scores, 2.0 * case.lanes * case.queries * weighted * numbers
    product = 2.0 * case.lanes * case.queries * case.dim
    if case.task == "train":
        # An entry: its value, and two products backward. A local key, half of them seen: two forward and four backward.
        return scores, product * (3 * weighted + 6 * case.chunk / 2)
    return scores, product * weighted


def _bytes(case: Case, *, key_bytes: int) -> float:
    """Keys once, each value that is needed once, queries and answers; without selection values are as short as keys."""
    if case.is_product:
        return _product_bytes(case, key_bytes=key_bytes)
    keys = float(case.lanes * case.entries * case.dim * key_bytes)
    queries = 4.0 * case.lanes * case.queries * case.dim
    if not case.has_values:
        assert case.k is not None
        return keys + queries + 12.0 * case.queries * case.k
    if case.k is None:
        return 2 * keys + 2 * queries
    values = float(case.lanes * min(case.entries, case.queries * case.k) * case.dim * case.number_bytes)
    if case.task == "train":  # and the entries written, the segment and its gradients
        return keys + values + 4.0 * case.lanes * case.dim * (2 * case.chunk + 4 * case.queries + 4 * case.chunk)
    return keys + values + 2 * queries


def _product_bytes(case: Case, *, key_bytes: int) -> float:
    """Halves of keys, queries, each value that is needed once, and answers; in training also the gradients of all."""
    assert case.k is not None
    found = float(case.lanes * case.queries * case.k)
    read = 2.0 * case.lanes * case.dim * (case.entries * key_bytes + case.queries * 4)
    if not case.has_values:
        return read + 12 * found
    read += 4.0 * case.value_dim * (min(case.slots, found) + case.queries)
    return read * (2 if case.task == "product train" else 1)
