"""Conformance points of attached models that no other file holds, each under its number."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, generate, lengths, make, memory_of, tokens, unpadded  # noqa: E402


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@torch.no_grad()
def test_point_05_a_padded_or_future_token_changes_nothing(base):
    model, x = make("llama", base), tokens(2, 10, seed=1)
    mask = torch.ones_like(x)
    mask[1, 7:] = 0
    other = x.clone()
    other[0, 6:] = 2 + (other[0, 6:] + 1) % 50
    other[1, 7:] = 2 + (other[1, 7:] + 1) % 50
    with mx.hf.attach(model, memory_of(model), top_k=4) as a:
        a.ingest(tokens(2, 12, seed=2))
        one, two = (model(ids, attention_mask=mask).logits for ids in (x, other))
    assert torch.equal(one[0, :6], two[0, :6])
    assert torch.equal(one[1, :7], two[1, :7])


@torch.no_grad()
def test_point_07_a_row_reads_its_own_memory_alone():
    model, x, text = make("llama"), tokens(2, 8, seed=3), tokens(2, 12, seed=4)
    other = text.clone()
    other[1] = tokens(1, 12, seed=5)[0]
    got = []
    for read in (text, other):
        with mx.hf.attach(model, memory_of(model), top_k=4) as a:
            a.ingest(read)
            got.append(model(x, position_ids=torch.arange(12, 20)[None]).logits)
    assert torch.equal(got[0][0], got[1][0])
    assert not torch.equal(got[0][1], got[1][1])


@torch.no_grad()
def test_point_08_a_chunk_never_retrieves_itself():
    model = make("llama")
    with mx.hf.attach(model, memory_of(model), top_k=8, write="all", trace=True) as a:
        for step in range(4):
            model(tokens(2, 5, seed=6), position_ids=torch.arange(5 * step, 5 * step + 5)[None], use_cache=False)
            assert all(trace.ids.max() < 5 * step for trace in a.trace.values())
            a.commit()


@torch.no_grad()
def test_point_15_beams_share_what_they_have_in_common():
    model, inputs = make("llama"), unpadded(1, 200, seed=7)
    sizes = []
    for beams in (1, 8):
        with mx.hf.attach(model, memory_of(model), top_k=EVERY) as a:
            generate(model, inputs, a.cache(window=8), num_beams=beams, max_new_tokens=4)
            assert lengths(a.memory[0]) == [192] * beams
            sizes.append(a.memory.nbytes)
    assert sizes[1] < 4 * sizes[0]  # the last blocks are each beam's own
