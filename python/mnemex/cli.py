"""The `mnemex` command. It looks for the packages of `mnemex[cli]` first, so that a missing one is said plainly."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line."""
    missing = [name for name in ("rich", "typer") if find_spec(name) is None]
    if missing:
        sys.exit(f"the mnemex command needs {' and '.join(missing)}: pip install '.[cli]' in its repository")
    from mnemex.commands import app
    from mnemex.errors import Error

    try:
        app()
    except Error as error:
        sys.exit(f"error: {error}")
