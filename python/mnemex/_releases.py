"""Releases of PyTorch and transformers that the adapters work with.

The oldest is asked for when an adapter is loaded: what is missing in one before would be an error in the middle of
something, or a wrong number. What came after the tests is only warned of, when a memory is attached.
"""

from __future__ import annotations

import re
import warnings

from mnemex.errors import MissingDependency

RANGE = {"torch": ((2, 9), (2, 13)), "transformers": ((5, 16), (5, 23))}
"""The oldest release with everything that is used, and the newest that the tests have seen; both pass them."""


def release(version: str) -> tuple[int, ...]:
    """Return major and minor number."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _named(package: str) -> tuple[str, str]:
    oldest, newest = (".".join(map(str, x)) for x in RANGE[package])
    return oldest, newest


def check_oldest(package: str, version: str) -> None:
    """Refuse a release that lacks something."""
    oldest, newest = _named(package)
    if release(version) < RANGE[package][0]:
        raise MissingDependency(
            f"{package} {version} is installed, which lacks what mnemex's adapters use: install {oldest} to {newest}, "
            f"e.g. pip install '{package}>={oldest}'"
        )


def check(package: str, version: str) -> None:
    """Refuse a release that lacks something, and warn of one that came after the tests."""
    check_oldest(package, version)
    oldest, newest = _named(package)
    if release(version) > RANGE[package][1]:
        warnings.warn(
            f"{package} {version} is newer than {newest}, the last release mnemex was tested with; if results look "
            f"wrong, install {oldest} to {newest}",
            stacklevel=3,
        )
