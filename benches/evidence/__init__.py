"""Whether published ideas help a real model: claims, tried on real text beside their baselines.

Each is judged by a rule that was fixed before; `python -m benches.evidence` writes docs/evidence.md.

A claim is one file here and one line in `CLAIMS`.
"""
