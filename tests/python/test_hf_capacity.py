"""Memories of models whose layers, or heads, hold different numbers of entries."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import make, memory_of, tokens  # noqa: E402


@torch.no_grad()
def test_layers_hold_what_the_pyramid_gives_them():
    model = make("llama")
    layers = memory_of(model).layers
    each = mx.pyramid(len(layers), 12, window=4, beta=8)
    memory = memory_of(model, capacity=each, evict=mx.AttentionMass(window=4, pool=3, recent=4))
    assert [memory[layer].capacity for layer in layers] == list(each)
    with mx.hf.attach(model, memory, top_k=4) as a:
        cache = a.cache(window=4, sinks=1)
        for step in tokens(1, 60).split(5, dim=1):
            model(step, past_key_values=cache, use_cache=True)
    assert [memory[layer].lengths.max() for layer in layers] == list(each)
    assert len(set(each)) > 1


@torch.no_grad()
def test_heads_of_layers_differ_and_none_is_no_limit(tmp_path):
    model = make("llama")
    plain = memory_of(model)
    heads = plain[plain.layers[0]].heads
    each = [None, *[list(range(5, 5 + heads)) for _ in plain.layers[1:]]]
    past = model(tokens(1, 30), use_cache=True).past_key_values
    memory = mx.from_cache(past, capacity=each)
    memory.save(tmp_path / "memory")
    for opened in (memory, mx.open(tmp_path / "memory")):
        assert opened[plain.layers[0]].lengths.tolist() == [[30] * heads]
        for layer in plain.layers[1:]:
            assert opened[layer].lengths.tolist() == [list(range(5, 5 + heads))]


@pytest.mark.parametrize("capacity", [[4], [4, 4, 4, 4, 4, 4, 4], [[4], 4], "all", [4, -1]])
def test_what_does_not_fit_the_layers_is_refused(capacity):
    with pytest.raises(mx.Error, match="capacity"):
        memory_of(make("llama"), capacity=capacity)
