"""What the hardware would allow: the calibration, and for each case the time that no engine can beat.

The limit of a case is the larger of its operations at the calibrated multiply-add rate of the registers, and its
bytes at the calibrated read rate for so many bytes. It is stated for float32, and for a first pass in bfloat16 on
the matrix unit where there is one. A share of the limit is limit / measured time.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benches import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.cases import Case
    from benches.engines import Limit

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
class Limits:
    """Calibrated rates, and the limits that follow from them."""

    rates: tuple[Rate, ...]

    def seconds(self, case: Case, *, threads: int, limit: Limit) -> float | None:
        """Time that the case takes at the limit; None where no limit is defined or calibrated."""
        if case.task == "call":
            return None
        if case.task == "write":
            return 2 * case.nbytes / self._rate("copy", threads) if limit == "f32" else None
        compute = "fma_f32_registers" if limit == "f32" else "amx_bf16_registers"
        if not self._find(compute, threads):
            return None
        size = _bytes(case, key_bytes=4 if limit == "f32" else 2)
        return max(_operations(case) / self._rate(compute, threads), size / self._read(size, threads))

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


def _operations(case: Case) -> float:
    scores = 2.0 * case.lanes * case.queries * case.entries * case.dim
    if not case.has_values:
        return scores
    weighted = case.entries if case.k is None else case.k
    product = 2.0 * case.lanes * case.queries * case.dim
    if case.task == "train":
        # An entry: its value, and two products backward. A local key, half of them seen: two forward and four backward.
        return scores + product * (3 * weighted + 6 * case.chunk / 2)
    return scores + product * weighted


def _bytes(case: Case, *, key_bytes: int) -> float:
    """Keys once, each value that is needed once, queries and answers; without selection values are as short as keys."""
    keys = float(case.lanes * case.entries * case.dim * key_bytes)
    queries = 4.0 * case.lanes * case.queries * case.dim
    if not case.has_values:
        assert case.k is not None
        return keys + queries + 12.0 * case.queries * case.k
    if case.k is None:
        return 2 * keys + 2 * queries
    values = 4.0 * case.lanes * min(case.entries, case.queries * case.k) * case.dim
    if case.task == "train":  # and the entries written, the segment and its gradients
        return keys + values + 4.0 * case.lanes * case.dim * (2 * case.chunk + 4 * case.queries + 4 * case.chunk)
    return keys + values + 2 * queries
