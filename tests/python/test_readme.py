"""The Python in README.md that needs no model runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_the_example_of_a_bank_runs(tmp_path, monkeypatch):
    (code,) = (example for example in EXAMPLES if "mx.hf" not in example)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
