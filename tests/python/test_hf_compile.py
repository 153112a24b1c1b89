"""torch.compile(fullgraph=True) of a model with a memory: one graph while the memory grows, the same numbers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

import mnemex as mx  # noqa: E402
from hf_models import gap, left_padded, make, memory_of, tokens  # noqa: E402

MERGES = {"joint": lambda: "joint", "bias": lambda: mx.torch.Bias(4), "gate": lambda: mx.torch.Gate(4)}


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_point_19_a_model_that_reads_is_one_graph_while_the_memory_grows(merge, padded):
    torch._dynamo.reset()
    model = make("llama")
    inputs = left_padded([0, 5], 12, seed=40) if padded else {"input_ids": tokens(2, 12, seed=41)}
    plain = model(**inputs, use_cache=False).logits
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(model, fullgraph=True, backend=counter)
    with mx.hf.attach(model, memory_of(model, rows=2), top_k=5, merge=MERGES[merge]()) as a:
        answers = []
        for i in range(4):
            answers.append(fast(**inputs, use_cache=False).logits)
            assert gap(answers[-1], model(**inputs, use_cache=False).logits) <= 1e-5
            a.ingest(tokens(2, 7, seed=42 + i))
        assert counter.frame_count == 1
    assert gap(answers[0], plain) <= 1e-5
    assert gap(answers[1], answers[2]) > 1e-3
    assert gap(fast(**inputs, use_cache=False).logits, plain) <= 1e-5
