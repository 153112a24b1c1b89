"""Every example of the documentation that needs no torch runs and holds what it asserts."""

from __future__ import annotations

import re

import pytest

from doc_pages import DOCS, PAGES, examples, needs_torch, run

SHARE = r"k=%d: [01]\.\d+ of the weight, at worst [01]\.\d+\n"
PRINTED = {
    "choosing-k": "".join(SHARE % k for k in (1, 8, 32, 128)),
    "speed": r"BuildInfo\(version='\S+', isa='\w+', isas=\(.*\), threads=\d+\)\n",
}
"""What pages print that assert nothing."""


@pytest.mark.parametrize("page", [page for page in PAGES if not needs_torch(page)], ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(page)
    if page.stem in PRINTED:
        assert re.fullmatch(PRINTED[page.stem], capsys.readouterr().out)
    else:
        assert any("assert" in example for example in examples(page))


def test_pages_are_found():
    assert DOCS / "index.md" in PAGES


def test_the_shares_of_the_page_about_k_rise_towards_the_whole(capsys):
    run(DOCS / "explanation" / "choosing-k.md")
    means, worst = zip(*re.findall(r": (\S+) of the weight, at worst (\S+)", capsys.readouterr().out), strict=True)
    for shares in (means, worst):
        numbers = [float(x) for x in shares]
        assert numbers == sorted(set(numbers))
        assert 0 < numbers[0] < numbers[-1] <= 1
