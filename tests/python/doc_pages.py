"""The examples of the documentation, page by page: each page runs from top to bottom, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_EXAMPLE = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def examples(page: Path) -> list[str]:
    """Examples of a page, each on its lines of the page, so that a failure names the right one."""
    text = page.read_text()
    return ["\n" * text.count("\n", 0, found.start(1)) + found[1] for found in _EXAMPLE.finditer(text)]


def needs_torch(page: Path) -> bool:
    return any(name in example for example in examples(page) for name in ("torch", "mx.hf", "transformers"))


PAGES = sorted(page for page in DOCS.rglob("*.md") if examples(page))


def run(page: Path) -> None:
    names: dict = {"__name__": page.stem}
    for example in examples(page):
        exec(compile(example, str(page), "exec"), names)
