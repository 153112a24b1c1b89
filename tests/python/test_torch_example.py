"""The example that trains a gate runs, learns, and reads its memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the example needs torch")
pytest.importorskip("transformers", reason="the example needs transformers")

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_gate.py"
STEP = re.compile(r"step +(\d+): ([\d.]+) bits per byte, (no|with) memory(?:, gates \[([\d. ]+)\])?")


def test_the_quick_form_learns_and_its_gates_move():
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # steps so small lose by more where others use the processors
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--quick"], capture_output=True, text=True, env=one_thread, check=False
    )
    assert done.returncode == 0, done.stderr
    steps = [STEP.fullmatch(line) for line in done.stdout.splitlines()]
    assert all(steps), done.stdout
    without, with_memory = ([float(step[2]) for step in steps if step[3] == kind] for kind in ("no", "with"))
    assert len(without) == len(with_memory) == 4
    for losses in (without, with_memory):
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0] - 1
    # Both twins begin alike and see the same bytes: what they differ by is the memory.
    assert with_memory[-1] != without[-1]
    gates = [[float(gate) for gate in step[4].split()] for step in steps if step[4]]
    assert all(len(each) == 4 and all(0 < gate < 1 for gate in each) for each in gates)
    assert max(abs(gate - 0.1192) for gate in gates[-1]) > 0.002, "a gate starts at sigmoid(-2)"


def test_it_is_short_enough_to_read_at_a_glance():
    assert len(EXAMPLE.read_text("utf-8").splitlines()) < 80
