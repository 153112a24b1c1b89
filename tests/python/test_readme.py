"""What README.md and the docstrings show without a model runs as it stands there, and gives what is said beside it."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np

import mnemex.bank
from plain_bank import attention, best, scores

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_the_example_of_a_bank_gives_what_its_comments_say(tmp_path, monkeypatch):
    (code,) = (example for example in EXAMPLES if "mx.hf" not in example)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)

    said = re.findall(r"((?:\w+\.\w+(?: and )?)+) \[([\d, ]+)\]", code)
    assert [name for name, _ in said] == ["hits.ids and hits.scores", "far.out"]
    for words, shape in said:
        for name in words.split(" and "):
            assert eval(name, names).shape == tuple(map(int, shape.split(", "))), name

    keys, values, queries = (names[name][0] for name in ("keys", "values", "queries"))
    scale = keys.shape[-1] ** -0.5
    for head in (0, 13, 31):
        own, all_values = keys[head // 4], values[head // 4]
        logits = scores(own, queries[head], "dot")
        _, ids = best(np.arange(9_000), logits[:, :9_000], 32)
        np.testing.assert_array_equal(names["hits"].ids[0, head], ids[:, :8])
        for t in range(5):
            out, lse = attention(logits[t, ids[t]] * scale, all_values[ids[t]])
            np.testing.assert_allclose(names["far"].out[0, head, t], out, atol=1e-5)
            np.testing.assert_allclose(names["far"].lse[0, head, t], lse, atol=1e-5)
            out, lse = attention(logits[t] * scale, all_values)
            np.testing.assert_allclose(names["out"][0, head, t], out, atol=1e-5)
            np.testing.assert_allclose(names["lse"][0, head, t], lse, atol=1e-5)
    assert (tmp_path / "memory").is_dir()


def test_the_example_in_the_docstring_of_a_bank_gives_what_it_shows():
    ran = doctest.testmod(mnemex.bank)
    assert ran.attempted > 0
    assert ran.failed == 0
