"""From retrieved entries to the texts they came from; memories made from a cache."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import EVERY, gap, left_padded, lengths, make, make_other, memory_of, tokens  # noqa: E402
from mnemex.hf.citations import Source, cite  # noqa: E402
from mnemex.torch.joined import Trace  # noqa: E402


@pytest.mark.parametrize("layers", [None, [0]])
@torch.no_grad()
def test_ingest_tells_which_entry_each_token_became(layers):
    model, batch = make("llama"), left_padded([0, 3], 11, seed=1)
    with mx.hf.attach(model, memory_of(model, **({"layers": layers} if layers else {}))) as a:
        for start in (0, 1):
            ids = a.ingest(batch["input_ids"], batch["attention_mask"], chunk=4)
            assert ids[0].tolist() == [*range(11 * start, 11 * start + 11)]
            assert ids[1].tolist() == [-1] * 3 + [*range(8 * start, 8 * start + 8)]
        assert lengths(a.memory[0]) == [22, 16]


@torch.no_grad()
def test_citations_are_the_stretches_that_were_read_from_most():
    model = make("llama")
    with mx.hf.attach(model, memory_of(model), top_k=4, trace=True) as a:
        a.ingest(tokens(1, 30, seed=2), name="one")
        a.ingest(tokens(1, 12, seed=3))
        model(tokens(1, 6, seed=4), position_ids=torch.arange(42, 48)[None], use_cache=False)
        trace, cited = a.trace, a.citations(100)
        total = np.mean([layer.share for layer in trace.values()])
        assert total / 2 < sum(c.mass for c in cited) <= total
        assert [c.mass for c in cited] == sorted((c.mass for c in cited), reverse=True)
        assert {c.source for c in cited} == {"one", 1}
        assert a.citations(1) == cited[:1]
        mass = np.zeros(42)
        for layer in trace.values():
            np.add.at(mass, layer.ids, layer.mass * layer.share[..., None] / layer.share.size / len(trace))
        for c in cited:
            first = 0 if c.source == "one" else 30
            assert c.mass == pytest.approx(mass[first + c.start : first + c.end].sum())
        covered = {t + (0 if c.source == "one" else 30) for c in cited for t in range(c.start, c.end)}
        assert {int(i) for i in np.flatnonzero(mass > mass[mass > 0].mean() * 1.5)} <= covered
        assert all(0 <= c.start < c.end <= (30 if c.source == "one" else 12) for c in cited)
    with mx.hf.attach(model, a.memory, top_k=4, trace=True) as b:
        model(tokens(1, 6, seed=4), position_ids=torch.arange(42, 48)[None], use_cache=False)
        assert {c.source for c in b.citations()} == {None}
    with mx.hf.attach(model, a.memory) as c, pytest.raises(mx.Error, match="trace=True"):
        c.citations()


def test_what_every_head_reads_a_little_of_is_not_cited_whole():
    ids = np.arange(60).reshape(1, 1, 1, 60)
    mass = np.full(ids.shape, 0.005)
    mass[..., [20, 21, 23]] = 0.2
    mass[..., 50] = 0.115
    mass /= mass.sum()
    trace = {0: Trace(ids, mass, np.full((1, 1, 1), 0.5))}
    cited = cite(trace, [Source("text", np.arange(60)[None])], n=9, row=0)
    assert [c[:3] for c in cited] == [("text", 20, 24), ("text", 50, 51)]
    assert [c.mass for c in cited] == pytest.approx([mass[..., 20:24].sum() / 2, mass[..., 50].sum() / 2])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_a_memory_from_a_cache_continues_the_text(name):
    model, x = make(name), tokens(2, 30, seed=5)
    want = model(x).logits[:, 20:]
    past = model(x[:, :20], use_cache=True).past_key_values
    memory = mx.from_cache(past)
    assert memory.rows == 2
    assert past.get_seq_length() == 20
    with mx.hf.attach(model, memory, top_k=EVERY) as a:
        assert a.next_position == 20
        got = model(x[:, 20:], position_ids=torch.arange(20, 30)[None].expand(2, -1), use_cache=False).logits
    assert gap(got, want) <= 1e-5


@torch.no_grad()
def test_a_memory_from_a_cache_leaves_pads_and_windows_out():
    model, batch = make("llama"), left_padded([0, 5], 12, seed=6)
    past = model(**batch, use_cache=True).past_key_values
    assert lengths(mx.from_cache(past, attention_mask=batch["attention_mask"])[1]) == [12, 7]
    static = transformers.StaticCache(config=model.config, max_cache_len=32)
    model(batch["input_ids"], past_key_values=static)
    assert lengths(mx.from_cache(static)[0]) == [12, 12]
    mixed = make("gemma2", layer_types=["sliding_attention", "full_attention"])
    assert mx.from_cache(mixed(tokens(1, 12), use_cache=True).past_key_values).layers == (1,)
    bart = make_other("bart")
    both = bart(input_ids=tokens(1, 5), decoder_input_ids=tokens(1, 9), use_cache=True).past_key_values
    assert lengths(mx.from_cache(both, key_codec="bf16")[0]) == [9]


@torch.no_grad()
def test_what_from_cache_refuses():
    model = make("llama")
    past = model(tokens(1, 4), use_cache=True).past_key_values
    with pytest.raises(mx.Error, match="past_key_values is a list"):
        mx.from_cache([])
    with pytest.raises(mx.Error, match="past_key_values holds no layer"):
        mx.from_cache(transformers.DynamicCache())
    with pytest.raises(mx.Error, match="attention_mask"):
        mx.from_cache(past, attention_mask=torch.ones(1, 5))
    with pytest.raises(mx.Error, match="key_dim"):
        mx.from_cache(past, key_dim=8)
    with mx.hf.attach(model, memory_of(model)) as a, pytest.raises(mx.Error, match="WindowCache"):
        mx.from_cache(a.cache())
