"""`python -m mnemex` is the `mnemex` command."""

from __future__ import annotations

from mnemex.cli import main

main()
