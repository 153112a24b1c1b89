"""docs/evidence.md, made from a results file and nothing else: `python -m benches.evidence.page FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

INTRODUCTION = """\
# Evidence

Made by `make evidence` from `{source}`; not edited by hand. Claims of published systems, tried on {model}
without training unless it says so, on {texts}. Seeds are fixed, so the results are the same
wherever float32 sums are; times are not.

Each pair that a claim names is compared text by text. It *holds* if the mean gain is above two of its standard errors
over the texts, *does not hold* if it is below minus two, and is *null* between. A claim holds where all its pairs do.
The rule was fixed before anything was run, and losses stay here.

Machine: {machine}. {versions}.
"""


def page(records: Sequence[dict[str, Any]], source: str) -> str:
    """Whole page as markdown."""
    about, *claims = records
    parts = [INTRODUCTION.format(source=source, **about), _summary(claims)]
    parts += [_claim(claim) for claim in claims]
    return "\n".join(parts)


def _summary(claims: Sequence[dict[str, Any]]) -> str:
    rows = [f"| [{c['name']}](#{_anchor(c['name'])}) | {c['says']} | **{c['verdict']}** |" for c in claims]
    return "\n".join(["| claim | what should come out | verdict |", "|---|---|---|", *rows, ""])


def _claim(claim: dict[str, Any]) -> str:
    grouped = any(each["group"] for each in claim["tried"])
    lead = ("", "|---", "| ") if grouped else ("", "", "")
    head = f"{'| setting ' if grouped else ''}| read with | {claim['unit']} | of each text | memory, MB | time, s |"
    rows = [head, f"{lead[1]}|---|--:|---|--:|--:|"]
    for each in claim["tried"]:
        results = each["results"]
        mean = sum(results) / len(results)
        listed = " ".join(f"{x:.3f}" for x in results)
        held = f"{each['memory_bytes'] / 1e6:.1f}" if each["memory_bytes"] else ""
        group = f"| {each['group']} " if grouped else ""
        rows.append(f"{group}| {each['name']} | {mean:.4f} | {listed} | {held} | {each['seconds']:.0f} |")
    pairs = ["| pair | gain | standard error | verdict |", "|---|--:|--:|---|"]
    for each in claim["judgements"]:
        name = f"{each['group'] + ': ' if each['group'] else ''}{each['better']} against {each['worse']}"
        pairs.append(f"| {name} | {each['gain']:+.4f} | {each['error']:.4f} | {each['verdict']} |")
    return "\n".join(
        [
            f"## {claim['name']}\n",
            f"*{claim['source']}.* {claim['says']}\n",
            f"{claim['setting']}\n",
            *rows,
            "",
            *pairs,
            f"\nVerdict: **{claim['verdict']}**.\n",
        ]
    )


def _anchor(name: str) -> str:
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-")


def write(source: Path, target: Path) -> None:
    """Make the page of a results file."""
    records = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    name = source.relative_to(ROOT) if source.is_relative_to(ROOT) else source.name
    target.write_text(page(records, str(name)), "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]).resolve(), ROOT / "docs" / "evidence.md")
