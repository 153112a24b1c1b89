"""Do the published ideas help a real model? Each claim is tried on real text beside its baselines, and judged by a rule
that was fixed before: `python -m benches.evidence` writes docs/evidence.md.

A claim is one file here and one line in `CLAIMS`.
"""
