"""Claims are judged by the rule that the page states, and `make evidence` still runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benches.evidence import __main__ as command
from benches.evidence.claim import Claim, Tried, judge, overall, record
from benches.evidence.page import page


def claim(*pairs: tuple[str, str], **about) -> Claim:
    return Claim(
        name="n", source="s", says="says", setting="setting", unit="bits", try_it=lambda _: [], pairs=pairs, **about
    )


def tried(name: str, *results: float, group: str = "") -> Tried:
    return Tried(group=group, name=name, results=results, memory_bytes=1, seconds=1.0)


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        ((1.0, 2.0, 3.0), (1.1, 2.11, 3.09), "holds"),
        ((1.1, 2.11, 3.09), (1.0, 2.0, 3.0), "does not hold"),
        ((1.0, 2.0, 3.0), (1.5, 1.6, 3.1), "null"),
        ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), "null"),
        ((1.0,), (2.0,), "null"),
    ],
)
def test_a_pair_is_judged_by_the_gains_of_each_text(new, old, verdict):
    both = [tried("new", *new), tried("old", *old)]
    (found,) = judge(claim(("new", "old")), both)
    assert found.verdict == verdict
    assert found.gain == pytest.approx(sum(o - n for n, o in zip(new, old, strict=True)) / len(new))
    (turned,) = judge(claim(("new", "old"), larger_is_better=True), both)
    assert turned.gain == -found.gain


def test_the_standard_error_is_that_of_the_mean():
    both = [tried("new", 0.0, 0.0, 0.0), tried("old", 1.0, 2.0, 3.0)]
    assert judge(claim(("new", "old")), both)[0].error == pytest.approx((1 / 3) ** 0.5)


def test_pairs_are_judged_within_their_group_and_all_of_them_count():
    ways = [
        tried("a", 1.0, 1.0, group="one"), tried("b", 2.0, 2.0, group="one"),
        tried("a", 1.0, 1.0, group="two"), tried("b", 0.5, 0.5, group="two"),
    ]  # fmt: skip
    found = judge(claim(("a", "b")), ways)
    assert [(each.group, each.verdict) for each in found] == [("one", "holds"), ("two", "does not hold")]
    assert overall(found) == "does not hold"
    assert overall(found[:1]) == "holds"
    assert overall(judge(claim(("a", "b")), [tried("a", 1.0), tried("b", 2.0)])) == "null"


def test_the_page_says_what_the_file_says():
    outcome = record(claim(("a", "b")), [tried("a", 1.25, 1.5, group="g"), tried("b", 2.25, 2.5, group="g")])
    about = {"model": "M", "texts": "T", "machine": "X", "versions": "V"}
    written = page(json.loads(json.dumps([about, outcome])), "file.jsonl")
    assert "| g | a | 1.3750 | 1.250 1.500 | 0.0 | 1 |" in written
    assert "| g: a against b | +1.0000 | 0.0000 | holds |" in written
    assert "**holds**" in written
    assert "`file.jsonl`" in written


def test_every_claim_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benches.evidence", "--quick", "--folder", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*.jsonl")
    about, *outcomes = map(json.loads, file.read_text().splitlines())
    assert "means nothing" in about["texts"]
    assert [each["name"] for each in outcomes] == [each.name for each in command.CLAIMS]
    for outcome, made in zip(outcomes, command.CLAIMS, strict=True):
        names = {each["name"] for each in outcome["tried"]}
        assert {name for pair in made.pairs for name in pair} <= names
        assert outcome["judgements"]
        assert all(result > 0.0 for each in outcome["tried"] for result in each["results"])
    assert "evidence.md" in done.stdout


def test_a_claim_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no claim has 'nothing' in its name"):
        command.main(["--claim", "nothing", "--folder", str(tmp_path)])
