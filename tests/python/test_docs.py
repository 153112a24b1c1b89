"""Every example of the documentation that needs no torch runs and holds what it asserts."""

from __future__ import annotations

import pytest

from doc_pages import DOCS, PAGES, needs_torch, run


@pytest.mark.parametrize("page", [page for page in PAGES if not needs_torch(page)], ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_pages_are_found():
    assert DOCS / "index.md" in PAGES
