"""`python -m benches.evidence`: try claim after claim, write JSON lines and docs/evidence.md."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benches import environment
from benches.evidence import consolidation, eviction, layers, page, passkey, pyramid, sizes
from benches.evidence.claim import record
from benches.evidence.subject import MODULES, Subject, pretrained, small
from benches.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

CLAIMS = (eviction.CLAIM, pyramid.CLAIM, consolidation.CLAIM, layers.CLAIM, passkey.CLAIM, sizes.CLAIM)
MODELS = ROOT / "target" / "evidence"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _options(arguments)
    chosen = [claim for claim in CLAIMS if options.claim.lower() in claim.name.lower()]
    if not chosen:
        raise SystemExit(f"no claim has {options.claim!r} in its name: {', '.join(c.name for c in CLAIMS)}")
    partial = options.quick or bool(options.claim)
    folder = options.folder or (ROOT / "target" / "benches" if partial else ROOT / "benches" / "results")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{datetime.now(UTC).date().isoformat()}-evidence.jsonl"
    subjects: dict[str, Subject] = {}
    with file.open("w", encoding="utf-8") as lines:
        lines.write(json.dumps(_about(quick=options.quick)) + "\n")
        for claim in chosen:
            begun = time.perf_counter()
            if claim.on not in subjects:
                subjects[claim.on] = _subject(claim.on, quick=options.quick)
            outcome = record(claim, claim.try_it(subjects[claim.on]))
            lines.write(json.dumps(outcome) + "\n")
            lines.flush()
            print(f"{claim.name}: {outcome['verdict']} ({time.perf_counter() - begun:.0f} s)", flush=True)
    target = folder / "evidence.md" if partial else ROOT / "docs" / "evidence.md"
    page.write(file, target)
    print(f"written: {file} and {target}")
    return 0


def _subject(kind: Literal["pretrained", "small"], *, quick: bool) -> Subject:
    if kind == "pretrained":
        return pretrained(quick=quick)
    return small(quick=quick, folder=MODELS, say=lambda line: print(f"training the small model: {line}", flush=True))


def _about(*, quick: bool) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    texts = f"the first 4,096 tokens of {', '.join(MODULES)} of Python {platform.python_version()}'s library"
    return {
        "model": "SmolLM2-135M-Instruct",
        "texts": "a stub of one text (a quick run, which means nothing)" if quick else texts,
        "machine": f"{environment.cpu_name()}, load average {environment.load_average():.1f} at the start",
        "versions": versions,
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.evidence", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little text: shows that everything runs, means nothing")
    parser.add_argument("--claim", default="", help="only claims with this in their name")
    parser.add_argument("--folder", type=Path, help="where results go")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
