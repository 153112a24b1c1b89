"""Numbers as the demo writes them, on the screen and in the report."""

from __future__ import annotations

import math


def count(n: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{n:,}"


def size(n_bytes: int) -> str:
    """Return bytes in KiB or MiB, with three digits."""
    unit, amount = ("MiB", n_bytes / 2**20) if n_bytes >= 2**20 else ("KiB", n_bytes / 2**10)
    decimals = 0 if amount >= 99.95 else 1 if amount >= 9.995 else 2
    return f"{amount:.{decimals}f} {unit}"


def percent(share: float) -> str:
    """Return a share in percent; a dash where there is none."""
    return "–" if math.isnan(share) else f"{100 * share:.0f}\u202f%"
