"""Speed, measured so that it can be believed: `python -m benches.run`, beside the other engines, in one run.

A run first asks what the machine can do at best (`calibrate`, a small Rust program), then takes one case after the
other. Reading order: `cases` (what is measured), `workloads` (the data), `reference` (the right answers, in float64),
`engines` and `roster` (who computes them), `worker` and `process` (each in a process of its own), `check` (whether
the answer is right), `measure` (interleaved rounds), `limits` (what the hardware would allow), `results` (one JSON
line per figure) and `page` (docs/benchmarks.md, made from those lines).
An engine whose answer is wrong gets no figure. A case that another engine wins stays in the table.
"""
