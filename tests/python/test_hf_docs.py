"""Every example of the documentation about models runs and holds what it asserts."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="these pages are about transformers models")

from doc_pages import PAGES, needs_torch, run


@pytest.mark.parametrize("page", [page for page in PAGES if needs_torch(page)], ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)
