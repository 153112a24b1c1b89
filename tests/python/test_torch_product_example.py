"""The example that trains product-key memories beside their twins runs, learns, and writes the table of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the example needs torch")

ROOT = Path(__file__).parents[2]
EXAMPLE, PAGE = ROOT / "examples" / "product_key_lm.py", ROOT / "docs" / "explanation" / "product-keys.md"
HEAD = "| middle block | parameters a token uses | bits per byte | slots used | KL, nats | ms a step |\n|"


def kinds(text: str) -> list[tuple[str, str, str, str]]:
    """Take the table apart: what the middle block is, its parameters, bits per byte, share of slots used."""
    lines = [line for line in text.partition(HEAD)[2].splitlines()[1:] if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.split("|")[1:5]) for line in lines]


def test_the_quick_form_learns_and_writes_its_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- until here -->\nafter\n")
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # steps so small lose by more where others use the processors
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--quick", "--write", page],
        capture_output=True,
        text=True,
        env=one_thread,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = kinds(done.stdout)
    assert len(rows) == 6, done.stdout
    for twin, *memories in (rows[:3], rows[3:]):
        assert twin[0].startswith("feed-forward")
        for memory, how in zip(memories, ("with", "without"), strict=True):
            assert memory[0].endswith(f"slots, {how} BatchNorm")
            assert memory[1] == twin[1], "a twin has as many parameters as a token uses"
            assert 0 < float(memory[3].rstrip("%")) <= 100
        assert all(float(row[2]) < 7 for row in (twin, *memories)), "8 bits is a guess"
    assert page.read_text() == f"before\n<!-- measured -->\n{done.stdout}<!-- until here -->\nafter\n"


def test_the_page_has_the_table_of_a_whole_run():
    rows = kinds(PAGE.read_text("utf-8"))
    slots = [row[0].split()[0] for row in rows if "slots" in row[0]]
    assert slots == ["4,096", "4,096", "16,384", "16,384", "65,536", "65,536"]
    assert len(rows) == 9
