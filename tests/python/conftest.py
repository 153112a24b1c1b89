"""What holds for every test: repeatable random cases, and never a stale native module."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[2]
COMPILED = ("rust/**/*.rs", "rust/**/Cargo.toml", "Cargo.toml", "Cargo.lock")

settings.register_profile("fast", deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("thorough" if os.environ.get("MNEMEX_THOROUGH") else "fast")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to test a module that is older than the Rust sources: its results would be of another program."""
    found = importlib.util.find_spec("mnemex._native")
    if found is None or found.origin is None:
        pytest.exit("mnemex is not built: run `make build`", returncode=4)
    built = Path(found.origin).stat().st_mtime
    newer = [path for pattern in COMPILED for path in ROOT.glob(pattern) if path.stat().st_mtime > built]
    if newer:
        pytest.exit(f"{newer[0].relative_to(ROOT)} is newer than the built module: run `make build`", returncode=4)
